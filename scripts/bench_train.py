"""Compare our training with sentence-transformers' `CrossEncoderTrainer`: speed, padding, memory and losses.

    python scripts/bench_train.py PATH/TO/beir
    python scripts/bench_train.py PATH/TO/beir --steps 20 --queries-per-step 8 --negatives 7 --loss pointwise
    python scripts/bench_train.py PATH/TO/beir --memory      # ours alone, groups of 8 and of 128 documents

Both train one plain checkpoint on the same groups, mined once by ours: a train query, one positive, negatives sampled
from the full collection. Every step has the same groups, loss, learning rate, clipping and AdamW: `listwise` is their
ListNetLoss, given labels whose softmax is 1 for the positive, and `pointwise` their BinaryCrossEntropyLoss. There is no
weight decay, because each side would apply it to other weights, and no dropout. Equal losses show that both sides do
the same computation; the exit code is 1 where float32 losses differ by more than 1e-4.

A step is from texts to new weights. Ours tokenises all texts before its first step, so those seconds are divided among
the steps; theirs tokenises in each step. Theirs uses fused AdamW, and the number of pairs in a pass that was fastest on
a few steps: `mini_batch_size` of the list loss, batch size and gradient accumulation of the other. It does not batch by
length (its trainer makes its own sampler, whatever the value of `train_sampling_strategy`). On one GPU both compute in
bf16 with autocast, theirs with tf32, pinned memory and workers. Sides take turns, each in its own process, so that its
peak memory is its own; both save model and optimizer after the last step.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from bench_sides import padding, parse, peak_mib, print_result, print_table, run_side, save_base, texts

from trainer.context import Run
from trainer.data.groups import Group, read_groups, write_groups
from trainer.errors import TrainerError
from trainer.pipeline import open_run, run
from trainer.recipe import Data, Mine, Recipe, Reranker, Retriever, Train
from trainer.runtime.run_folder import read_json, write_json

if TYPE_CHECKING:
    from datasets import Dataset

RATE = 2e-5
WARM_STEPS = 2  # first steps, which are not part of the median
PROBE_STEPS = 4  # steps on which their number of pairs in a pass is chosen
PASSES = (8, 16, 32, 64, 128, 256)  # pairs in one of their passes
MEMORY_STEPS, MEMORY_DOCUMENTS = 3, (8, 128)
SHOWN = 6  # steps whose losses are printed
SAME = 1e-4


def recipe_of(task: dict[str, Any], folder: Path) -> Recipe:
    """Return the recipe that both sides use."""
    return Recipe(
        name="run",
        data=Data(path=Path(task["path"])),
        retriever=Retriever(kind="bm25"),
        mine=Mine(groups="draws", negatives_per_positive=task["negatives"], random_share=1.0),
        reranker=Reranker(model=str(folder / "base"), max_length=task["max_length"]),
        train=Train(
            loss=task["loss"],
            queries_per_step=task["queries_per_step"],
            learning_rate=RATE,
            head_learning_rate=RATE,
            weight_decay=0.0,
            precision=task.get("precision", "auto"),
            compile=task.get("compile", False),
            adapter=task.get("adapter", "none"),
            tokens_per_pass=task.get("tokens_per_pass", Train().tokens_per_pass),
            evaluations_per_epoch=1,
            checkpoint_steps=task["steps"],
        ),
    )


def run_of(task: dict[str, Any], folder: Path) -> Run:
    """Return the run that `prepare` made, for its collection and accelerator."""
    return open_run(recipe_of(task, folder), folder)


def prepare(task: dict[str, Any], folder: Path) -> None:
    """Write the collection, and groups of one size, one for each query, as many as the steps need."""
    run(recipe_of(task, folder), folder, until="mine")
    groups = {}
    for group in read_groups(folder / "run" / "mine"):
        if len(group.negatives) >= task["negatives"]:
            cut = Group(group.query, group.positives[:1], [1], group.negatives[: task["negatives"]])
            groups.setdefault(group.query, cut)
    needed = task["steps"] * task["queries_per_step"]
    if len(groups) < needed:
        raise TrainerError(
            f"{task['path']}: {len(groups)} train queries with {task['negatives']} negatives, but {task['steps']} "
            f"steps of {task['queries_per_step']} queries need {needed}; lower --steps or --queries-per-step"
        )
    write_groups(list(groups.values())[:needed], folder)
    write_json(folder / "task.json", task)


def ours(task: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return losses and seconds of our steps, and the tokens of every pair in the order of the steps."""
    from trainer import model as rerankers
    from trainer.training import TrainingJob, train_reranker

    opened, groups = run_of(task, folder), read_groups(folder)
    accelerator = opened.accelerator
    reranker = rerankers.Reranker.load(
        folder / "base", max_length=task["max_length"], precision=task.get("precision", "auto")
    )
    reranker.packed = task.get("packed", reranker.packed)
    tokenized = rerankers.TokenizedCollection(opened.collection, reranker.pairs)
    started = time.perf_counter()
    pairs = tokenized.pairs([(group.query, row) for group in in_order(groups, task, folder) for row in group.documents])
    tokenising = time.perf_counter() - started

    run = folder / "ours"
    shutil.rmtree(run, ignore_errors=True)  # it may have a checkpoint of the last round
    run.mkdir()
    train_reranker(
        TrainingJob(opened.recipe, groups, [], reranker, tokenized, lambda: 0.0, accelerator, run, fresh_head=True)
    )
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [line for line in lines if "loss" in line]
    in_step = len(pairs) / len(steps)
    return {
        "losses": [step["loss"] for step in steps],
        "seconds": [in_step / step["pairs_per_second"] + tokenising / len(steps) for step in steps],
        "padding": steps[-1]["padding"],
        "sizes": [reranker.pairs.size(pair) for pair in pairs],
    }


def in_order(groups: Sequence[Group], task: dict[str, Any], folder: Path) -> list[Group]:
    """Return the groups in the order of our training."""
    from trainer.training import steps

    recipe = recipe_of(task, folder)
    return [groups[position] for step in steps(len(groups), recipe.train, recipe.seed) for position in step]


def theirs(task: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return losses and seconds of their steps, with `task["pass"]` pairs in a pass."""
    import torch
    from sentence_transformers import CrossEncoder
    from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments
    from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss, ListNetLoss
    from transformers import TrainerCallback

    from trainer.training import rate_factor

    cuda = torch.cuda.is_available()
    has_bf16 = cuda and torch.cuda.is_bf16_supported(including_emulation=False)
    half = task["precision"] == "bf16" if "precision" in task else has_bf16
    lists = task["loss"] == "listwise"
    in_step = task["queries_per_step"] * (1 + task["negatives"])
    accumulated = 1 if lists else in_step // task["pass"]
    losses, ends = [], []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            if cuda:
                torch.cuda.synchronize()
            ends.append(time.perf_counter())

    class Trainer(CrossEncoderTrainer):
        def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            loss = super().training_step(*args, **kwargs)
            losses.append(loss)
            return loss

    model = CrossEncoder(
        str(folder / "base"), max_length=task["max_length"], model_kwargs={"attn_implementation": "sdpa"}
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0, fused=True)
    warmup = recipe_of(task, folder).train.warmup_share
    Trainer(
        model=model,
        args=CrossEncoderTrainingArguments(
            output_dir=str(folder / "theirs"),
            per_device_train_batch_size=task["queries_per_step"] if lists else task["pass"],
            gradient_accumulation_steps=accumulated,
            max_steps=task["steps"],
            batch_sampler=_sequential_batches,
            bf16=half,
            use_cpu=half and not cuda,  # otherwise it refuses bf16 on a CPU
            tf32=cuda or None,
            dataloader_num_workers=2 if cuda else 0,
            dataloader_pin_memory=cuda,
            report_to="none",
            logging_strategy="no",
            save_strategy="steps" if task.get("save", True) else "no",
            save_steps=task["steps"],
            disable_tqdm=True,
        ),
        train_dataset=_rows(task, folder),
        loss=ListNetLoss(model, mini_batch_size=task["pass"]) if lists else BinaryCrossEntropyLoss(model),
        optimizers=(
            optimizer,
            torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_factor(step, task["steps"], warmup)),
        ),
        callbacks=[Clock()],
    ).train()
    # Each pass of a step returns its share of the loss.
    return {
        "losses": torch.stack(losses).view(-1, accumulated).sum(dim=1).tolist(),
        "seconds": np.diff(ends, prepend=np.nan).tolist(),
    }


def _sequential_batches(rows: Dataset, batch_size: int, **_: Any) -> Any:
    """Return batches in the order of the rows; a named function, because theirs saves its settings with the model."""
    from sentence_transformers.base.sampler import DefaultBatchSampler
    from torch.utils.data import SequentialSampler

    order: Any = SequentialSampler(rows)
    return DefaultBatchSampler(order, batch_size, False)


def _rows(task: dict[str, Any], folder: Path) -> Dataset:
    """Return the groups in the order of our steps, in the form of their losses: complete groups, or single pairs."""
    from datasets import Dataset

    collection = run_of(task, folder).collection
    groups = in_order(read_groups(folder), task, folder)
    queries = texts(collection.queries, "text", {group.query for group in groups})
    documents = texts(collection.documents, "passage", {row for group in groups for row in group.documents})
    labels = [1.0] + [0.0] * task["negatives"]
    if task["loss"] == "pointwise":
        rows = [
            {"query": queries[group.query], "document": documents[row], "label": label}
            for group in groups
            for row, label in zip(group.documents, labels, strict=True)
        ]
    else:  # ListNetLoss takes the softmax of the labels; that of their logarithms is the labels
        logarithms = [0.0] + [-np.inf] * task["negatives"]
        rows = [
            {
                "query": queries[group.query],
                "documents": [documents[row] for row in group.documents],
                "label": logarithms,
            }
            for group in groups
        ]
    return Dataset.from_list(rows)


def fastest_pass(task: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the number of pairs in a pass that is fastest on a few of their steps and fits into memory."""
    import torch

    in_step = task["queries_per_step"] * (1 + task["negatives"])
    seconds = {}
    for pairs in task.get("passes") or sorted({*(size for size in PASSES if in_step % size == 0), in_step}):
        probe = task | {"pass": pairs, "steps": min(PROBE_STEPS, task["steps"]), "save": False}
        try:
            seconds[pairs] = min(theirs(probe, folder)["seconds"][1:])
        except torch.OutOfMemoryError:
            break
    return {"pass": min(seconds, key=lambda pairs: seconds[pairs])}


SIDES = {"ours": ours, "sentence-transformers": theirs, "probe": fastest_pass}


def compare(task: dict[str, Any], folder: Path, rounds: int) -> float:
    """Run both sides in turn, several times; print speed and losses, and return the largest difference of losses."""
    prepare(task, folder)
    task["pass"] = run_side(__file__, "probe", folder)["pass"]
    write_json(folder / "task.json", task)
    results = {"ours": [], "sentence-transformers": []}
    for number in range(rounds):
        for side in sorted(results, reverse=number % 2 == 1):
            results[side].append(run_side(__file__, side, folder))
    steps = {side: [np.median(run["seconds"][WARM_STEPS:]) for run in runs] for side, runs in results.items()}
    seconds = {side: float(np.median(medians)) for side, medians in steps.items()}
    mib = {side: float(np.median([run["mib"] for run in runs])) for side, runs in results.items()}
    sizes = results["ours"][0]["sizes"]
    batches = passes(len(sizes), task)
    wasted = {"ours": results["ours"][0]["padding"], "sentence-transformers": padding(sizes, batches)}
    in_step = task["queries_per_step"] * (1 + task["negatives"])
    title = f"{Path(task['path']).name}, {task['loss']}: steps of {task['queries_per_step']} queries, {in_step} pairs"
    print(f"\n{title} of {np.mean(sizes):.0f} tokens, median of {task['steps'] - WARM_STEPS} steps")
    print(f"and of {rounds} interleaved rounds, {task['pass']} pairs in their passes\n")
    print_table(seconds, mib, wasted, in_step, sum(sizes) / task["steps"])
    return compare_losses(*(runs[0]["losses"] for runs in results.values()))


def passes(pairs: int, task: dict[str, Any]) -> list[list[int]]:
    """Return the positions of the pairs in each of their passes: slices of each step, in its order."""
    in_step = task["queries_per_step"] * (1 + task["negatives"])
    return [
        list(range(pair, min(pair + task["pass"], start + in_step)))
        for start in range(0, pairs, in_step)
        for pair in range(start, start + in_step, task["pass"])
    ]


def compare_losses(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Print the losses of both at some steps, and return the largest difference at any step."""
    print("\n| step | loss, ours | sentence-transformers |\n| ---: | ---: | ---: |")
    for step in np.unique(np.linspace(0, len(ours) - 1, SHOWN).round().astype(int)).tolist():
        print(f"| {step + 1} | {ours[step]:.6f} | {theirs[step]:.6f} |")
    largest = float(np.abs(np.subtract(ours, theirs)).max())
    print(f"\nlargest difference of the losses of {len(ours)} steps: {largest:.1e}")
    return largest


def grow(task: dict[str, Any], folder: Path) -> None:
    """Print our peak memory for small and large groups, with passes of the size of a small group."""
    budget = max(512, min(MEMORY_DOCUMENTS) * task["max_length"])
    print(f"{budget} tokens in a pass\n\n| documents in a group | peak MiB |\n| ---: | ---: |")
    for documents in MEMORY_DOCUMENTS:
        prepare(task | {"negatives": documents - 1, "steps": MEMORY_STEPS, "tokens_per_pass": budget}, folder)
        print(f"| {documents} | {run_side(__file__, 'ours', folder)['mib']:.0f} |", flush=True)


def measure(side: str, folder: Path) -> None:
    """Run one side in this process, and print its results."""
    values = SIDES[side](read_json(folder / "task.json"), folder)
    print_result(**values, mib=peak_mib())


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, nargs="?", metavar="PATH", help="a folder in BEIR layout")
    parser.add_argument("--steps", type=int, default=20, help=f"the first {WARM_STEPS} are not part of the median")
    parser.add_argument("--queries-per-step", type=int, default=8)
    parser.add_argument("--negatives", type=int, default=7)
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--loss", choices=("listwise", "pointwise"), default="listwise")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--memory", action="store_true", help="only print our peak memory for groups of 8 and of 128 documents"
    )
    arguments = parse(parser, SIDES)
    if arguments.side:
        measure(arguments.side, arguments.folder)
        return
    if arguments.path is None or arguments.steps <= WARM_STEPS:
        parser.error(f"give a collection in BEIR layout, and more than {WARM_STEPS} steps")
    names = ("steps", "queries_per_step", "negatives", "max_length", "loss")
    task = {"path": str(arguments.path.resolve())} | {name: getattr(arguments, name) for name in names}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_base(arguments.shape, folder / "base")
        try:
            largest = grow(task, folder) if arguments.memory else compare(task, folder, arguments.rounds)
        except TrainerError as error:
            parser.error(str(error))
    if largest is not None and not largest <= SAME and not on_gpu():  # nan is not the same either
        raise SystemExit(f"bench_train: float32 losses differ by {largest:.1e}, more than {SAME:.0e}")


def on_gpu() -> bool:
    """Return whether the sides ran on a GPU, in bf16."""
    import torch

    return torch.cuda.is_available()


if __name__ == "__main__":
    main()
