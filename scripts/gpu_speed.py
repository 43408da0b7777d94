"""Parts of scripts/gpu_check that measure speed: scoring and training, ours and sentence-transformers'.

The sides are those of bench_score.py and bench_train.py, on random models. They run one after the other in one process,
each loaded after the previous one was freed, so that the peak memory is its own. sentence-transformers computes in bf16
with torch's attention and a fused AdamW, sorts the pairs that it scores, and uses its fastest batch size.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gpu_chip import chip_peak, device_of, synchronize
from gpu_parts import Results

ROUNDS = 3  # of scoring, of which the median is reported
THEIRS = "sentence-transformers"
WIDE_PASS = 65536  # tokens: four times the default, which may be too small for a large GPU


@dataclass(frozen=True)
class Load:
    """The amount of work for one shape."""

    pairs: int  # to score
    steps: int
    queries_per_step: int = 16
    negatives: int = 7
    max_length: int = 512
    words: int = 120  # of a document
    passes: tuple[int, ...] = (16, 32, 64, 128)  # pairs in one of their passes, of which the fastest is used


LOADS = {
    "minilm": Load(pairs=4096, steps=20),
    "modernbert": Load(pairs=1024, steps=12, passes=(32, 64, 128)),
    "decoder": Load(pairs=512, steps=6, queries_per_step=8, passes=(16, 32)),
}
DRY_LOAD = Load(pairs=24, steps=4, queries_per_step=2, negatives=3, max_length=64, words=20, passes=(8,))


@dataclass(frozen=True)
class Bench:
    """One prepared shape: its folder, the task of both sides, and the peak of the GPU."""

    shape: str
    dry: bool
    results: Results
    folder: Path
    task: dict[str, Any]
    peak: float  # TFLOP/s

    def add(self, what: str, seconds: float, sizes: Sequence[int], forwards: int, **more: Any) -> None:
        """Report a speed on `forwards` times the work of scoring these pairs; a backward pass counts as two."""
        from bench_sides import model_flops, peak_mib
        from gpu_models import classifier

        model = classifier(self.shape, self.dry, "meta")
        flops = forwards * model_flops(model, sizes, causal=self.shape == "decoder")
        self.results.add(
            what,
            pairs_per_second=len(sizes) / seconds,
            tokens_per_second=sum(sizes) / seconds,
            share_of_peak=flops / seconds / 1e12 / self.peak,
            peak_mib=peak_mib(),
            **more,
        )

    def attempt(self, what: str, do: Callable[[], None]) -> None:
        """Run a measurement after freeing memory and resetting the Accelerate state of earlier ones."""
        import torch
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(reset_partial_state=True)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        self.results.attempt(what, do)


def prepare(shape: str, results: Results, folder: Path, dry: bool) -> Bench:
    """Save collection, groups and base model in the folder."""
    from bench_sides import be_quiet
    from bench_train import recipe_of, run_of
    from gpu_models import save_classifier, save_collection

    from trainer.pipeline import run

    device = device_of(dry)
    be_quiet()
    load = DRY_LOAD if dry else LOADS[shape]
    needed = load.steps * load.queries_per_step
    save_collection(folder / "set", {"train": needed, "dev": 4, "test": 100}, max(1000, 2 * needed), load.words)
    save_classifier(shape, dry, device, folder / "base")
    task = {
        "path": str(folder / "set"),
        "steps": load.steps,
        "queries_per_step": load.queries_per_step,
        "negatives": load.negatives,
        "max_length": load.max_length,
        "loss": "listwise",
        "precision": "bf16",
        "passes": load.passes,
        "save": False,
    }
    run(recipe_of(task, folder), folder, until="data")
    opened = run_of(task, folder)
    (folder / "data").symlink_to(opened.folder / "data")  # where bench_score expects it
    _write_groups(opened.collection, load.negatives, folder)
    return Bench(shape, dry, results, folder, task, chip_peak(dry))


def _write_groups(collection: Any, negatives: int, folder: Path) -> None:
    """Write a group for every train query, with negatives sampled from all documents."""
    from trainer.data.groups import Group, write_groups

    rng = np.random.default_rng(13)
    judged = {query: next(iter(grades)) for query, grades in collection.qrels["train"].items()}
    drawn = rng.integers(len(collection.documents), size=(len(judged), negatives)).tolist()
    write_groups([Group(query, [row], [1], drawn[index]) for index, (query, row) in enumerate(judged.items())], folder)


# Scoring.


def score(bench: Bench) -> None:
    """Score the same pairs with ours, packed and padded and from tokens, then with theirs."""
    from bench_score import Ours, Theirs, draw_pairs

    from trainer.data import Collection

    load = DRY_LOAD if bench.dry else LOADS[bench.shape]
    rows = draw_pairs(Collection.open(bench.folder / "data"), load.pairs)
    task = bench.task | {"pairs": rows}
    task |= {"precision": "fp32"} if bench.dry else {}  # theirs scores in float32 on a CPU
    scores: dict[str, np.ndarray] = {}

    def side(what: str, make: Callable[[], Any]) -> None:
        bench.attempt(what, lambda: scores.update({what: _score_side(bench, what, make(), rows)}))

    def ours(packed: bool | None) -> Any:
        made = Ours(bench.folder, task)
        made.reranker.packed = made.reranker.packed if packed is None else packed
        return made

    side("score, ours", lambda: ours(None))
    side("score, ours padded", lambda: ours(False))
    if bench.dry:  # on a GPU this is the default layout
        side("score, ours packed", lambda: ours(True))
    bench.attempt("score, ours tokenised before", lambda: _score_tokens(bench, ours(None), rows))
    side(f"score, {THEIRS}", lambda: Theirs(bench.folder, task))
    if {"score, ours", f"score, {THEIRS}"} <= scores.keys():
        ours_scores, theirs = scores["score, ours"], scores[f"score, {THEIRS}"]
        largest = float(np.abs(ours_scores - theirs).max())
        bench.results.add("difference of scores", largest=largest, spread=float(ours_scores.std()))


def _score_side(bench: Bench, what: str, side: Any, rows: list[tuple[int, int]]) -> np.ndarray:
    """Measure one side from texts to scores, and return the scores."""
    from bench_score import Ours, timed
    from bench_sides import padding

    side.score(rows)  # warm-up
    rounds = [timed(lambda: side.score(rows)) for _ in range(1 if bench.dry else ROUNDS)]
    seconds = float(np.median([took for took, _ in rounds]))
    sizes = pair_sizes(bench, rows)
    batches = side.batches(sizes) if isinstance(side, Ours) else side.batches(rows)
    more = {"packed": side.reranker.packed} if isinstance(side, Ours) else {"batch_size": side.batch_size}
    bench.add(what, seconds, sizes, 1, padding=padding(sizes, batches), **more)
    return rounds[-1][1]


def _score_tokens(bench: Bench, side: Any, rows: list[tuple[int, int]]) -> None:
    """Measure ours on texts that are tokenised already, without the time of tokenisation."""
    from bench_score import timed

    from trainer.model import TokenizedCollection

    pairs = TokenizedCollection(side.collection, side.reranker.pairs).pairs(rows)
    side.reranker.score_tokens(pairs)
    seconds = [timed(lambda: side.reranker.score_tokens(pairs))[0] for _ in range(1 if bench.dry else ROUNDS)]
    bench.add("score, ours tokenised before", float(np.median(seconds)), pair_sizes(bench, rows), 1)


def pair_sizes(bench: Bench, rows: Sequence[tuple[int, int]]) -> list[int]:
    """Return the number of tokens of each joined pair."""
    from gpu_models import tokenizer

    from trainer.data import Collection
    from trainer.model import TokenizedCollection
    from trainer.model.batching import PairEncoder

    encoder = PairEncoder(tokenizer(segments=bench.shape == "minilm"), bench.task["max_length"])
    collection = Collection.open(bench.folder / "data")
    return [encoder.size(pair) for pair in TokenizedCollection(collection, encoder).pairs(rows)]


# Training.


def train(bench: Bench, sides: dict[str, dict[str, Any]]) -> None:
    """Train ours on the same groups, once for each of `sides`, which are {name: additional keys of the task}."""
    import bench_train

    run = _train_decoder if bench.shape == "decoder" else bench_train.ours
    for what, more in sides.items():
        bench.attempt(what, lambda what=what, more=more: _train_side(bench, what, bench.task | more, run))


def train_theirs(bench: Bench) -> None:
    """Train theirs, with the number of pairs in a pass that is fastest on a few steps."""
    import bench_train

    def fastest() -> None:
        best = bench_train.fastest_pass(bench.task, bench.folder)
        _train_side(bench, f"train, {THEIRS}", bench.task | best, bench_train.theirs)

    bench.attempt(f"train, {THEIRS}", fastest)


def _train_side(
    bench: Bench, what: str, task: dict[str, Any], run: Callable[[dict[str, Any], Path], dict[str, Any]]
) -> None:
    from bench_sides import padding
    from bench_train import WARM_STEPS, in_order, passes

    from trainer.data.groups import read_groups

    trained = run(task, bench.folder)
    groups = in_order(read_groups(bench.folder), task, bench.folder)
    sizes = pair_sizes(bench, [(group.query, row) for group in groups for row in group.documents])
    wasted = trained["padding"] if "padding" in trained else padding(sizes, passes(len(sizes), task))
    seconds = float(np.median(trained["seconds"][WARM_STEPS:])) * task["steps"]
    first = float(trained["seconds"][0])
    more = {"first_step_seconds": None if np.isnan(first) else first, "pairs_in_a_pass": task.get("pass")}
    forwards = 2 if task.get("adapter") == "lora" else 3  # frozen weights need no gradients of their own
    bench.add(what, seconds, sizes, forwards, padding=wasted, last_loss=trained["losses"][-1], **more)


def _train_decoder(task: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Train like `bench_train.ours`, but without its checkpoints, which would be ten gigabytes."""
    import time

    from bench_train import in_order, run_of

    from trainer.data.groups import read_groups
    from trainer.model import Reranker, ScoringModel, TokenizedCollection
    from trainer.training.gradients import GradientStep
    from trainer.training.optimizer import configure_model, make_optimizer

    opened = run_of(task, folder)
    accelerator = opened.accelerator
    groups = in_order(read_groups(folder), task, folder)
    reranker = Reranker.load(folder / "base", max_length=task["max_length"], precision=task["precision"])
    section = opened.recipe.train
    configure_model(section, reranker, ranks=False)
    tokenized = TokenizedCollection(opened.collection, reranker.pairs)
    optimizer = make_optimizer(section, reranker, fresh_head=True, ranks=False)
    gradient_step = GradientStep(section, groups, reranker, tokenized, accelerator, ScoringModel(reranker))
    losses, seconds = [], []
    for start in range(0, len(groups), task["queries_per_step"]):
        started = time.perf_counter()
        prepared = gradient_step.prepare(range(start, start + task["queries_per_step"]))
        losses.append(gradient_step.accumulate(prepared)[0].item())
        optimizer.step()
        optimizer.zero_grad()
        synchronize(accelerator.device.type)
        seconds.append(time.perf_counter() - started)
    return {"losses": losses, "seconds": seconds, "padding": gradient_step.padding}


# The parts.


def minilm(results: Results, folder: Path, dry: bool) -> None:
    """Score with and train a model of MiniLM-L6's shape."""
    _encoder(prepare("minilm", results, folder, dry))


def modernbert(results: Results, folder: Path, dry: bool) -> None:
    """Score with and train a model of ModernBERT-base's shape."""
    _encoder(prepare("modernbert", results, folder, dry))


def _encoder(bench: Bench) -> None:
    score(bench)
    layouts = {"train, ours": {}, "train, ours padded": {"packed": False}}
    train(bench, layouts | ({"train, ours packed": {"packed": True}} if bench.dry else {}))
    train_theirs(bench)
    train(bench, {f"train, ours {WIDE_PASS} tokens a pass": {"tokens_per_pass": WIDE_PASS}})


def decoder(results: Results, folder: Path, dry: bool) -> None:
    """Score with and train a model of Qwen3-0.6B's shape: all of its weights, and a LoRA adapter."""
    bench = prepare("decoder", results, folder, dry)
    score(bench)
    full = {"tokens_per_pass": 8192}
    train(bench, {"train, ours": full, "train, ours LoRA": full | {"adapter": "lora"}})
    train_theirs(bench)


def compiled(results: Results, folder: Path, dry: bool) -> None:
    """Train a model of MiniLM-L6's shape with torch.compile, and in the same layout without it."""
    bench = prepare("minilm", results, folder, dry)
    train(bench, {"train, ours padded": {"packed": False}, "train, ours compiled": {"compile": True}})
