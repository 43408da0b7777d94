"""Training: groups in, the best checkpoint on dev out.

The loop is plain Accelerate: a step is `queries_per_step` groups over all devices, cut into passes under a token
budget; the loss is divided by the groups of the whole step, so it does not depend on how the step was spread. Dev is
measured as a user will use the model, by reranking what the first stage really returned, and the best state is kept,
the untrained one included. A killed run goes on from its last checkpoint with the same batches and random numbers.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from accelerate import Accelerator
from scipy.optimize import minimize
from torch import Tensor, nn

from trainer import console
from trainer.batches import TOKENS_PER_BUCKET, Tokens, buckets
from trainer.errors import RunError
from trainer.groups import Group
from trainer.losses import LOSSES, Loss
from trainer.recipe import Recipe, Train
from trainer.reranker import Reranker, ScoringModel, TokenizedCollection, rarity
from trainer.runs import read_json, write_json
from trainer.track import Log

Measure = Callable[[], tuple[float, np.ndarray]]  # a score, larger is better, and what it was measured on

# Peak rates. What ranks well before the first step, a ready reranker or a fitted interaction head, goes gently: users
# of other tools report collapse at 6e-5, and here 5e-5 lost on dev what 2e-5 kept (docs/results.md). Under a fresh
# classifier by millions of parameters; the sweep published with the Ettin rerankers (2026) found 2.4e-4 at 17M to 3e-6
# at 1B, with ten and more times as many queries in a step.
GENTLE_RATE = 2e-5
ENCODER_RATES = ((40, 5e-5), (100, 3e-5), (250, 2e-5), (600, 7e-6), (math.inf, 3e-6))
HEAD_RATES = {"interaction": 2e-4, "classifier": 1e-3}

RARITY_SAMPLE = 100_000  # documents whose tokens are counted
PROBE_LISTS = 300  # lists of candidates that a fresh head is fitted to; its dozen weights need no more
PROBE_RIDGE = 0.003  # on weights of features of unit spread


def default_rate(parameters: int, fresh_classifier: bool) -> float:
    """Peak learning rate of the encoder for a model of so many parameters."""
    by_size = next(rate for millions, rate in ENCODER_RATES if parameters <= millions * 1e6)
    return by_size if fresh_classifier else min(by_size, GENTLE_RATE)


@dataclass
class Progress:
    """Where training stands; all that a resumed run needs beside weights, optimizer and random states."""

    step: int = 0
    best_score: float = -math.inf
    best_step: int = 0
    curve: list[tuple[int, float]] = field(default_factory=list)


def steps(num_groups: int, section: Train, seed: int) -> list[list[int]]:
    """Positions of the groups of every step of the run: each epoch shuffled anew, a short last step kept."""
    plan = []
    for epoch in range(section.epochs):
        order = np.random.default_rng([seed, epoch]).permutation(num_groups).tolist()
        plan += [
            order[start : start + section.queries_per_step] for start in range(0, num_groups, section.queries_per_step)
        ]
    return plan


def evaluation_steps(total: int, section: Train) -> set[int]:
    """Steps after which dev is measured, spread evenly, the last one included."""
    count = section.epochs * section.evaluations_per_epoch
    return {round(total * part / count) for part in range(1, count + 1)}


def rate_factor(step: int, total: int, warmup_share: float) -> float:
    """Share of the peak rate at a step (from 0): linear up over the warm-up, then linear down to zero."""
    warmup = max(1, round(total * warmup_share))
    return (step + 1) / warmup if step < warmup else (total - step) / max(1, total - warmup)


def start_head(reranker: Reranker, tokenized: TokenizedCollection, lists: Sequence[Group]) -> None:
    """Fit a fresh interaction head while the encoder rests, so that fine-tuning starts from a good model.

    Rare tokens of the corpus weigh more. The mixture of features minimises the listwise loss over whole lists of
    candidates as they will be reranked; over mined groups, a biased sample of them, it comes out worse than not
    fitted at all (docs/results.md). Probing before fine-tuning: Kumar et al., ICLR 2022.
    """
    if not reranker.is_interaction:
        return
    model = reranker.model
    model.start_head(rarity(tokenized.documents(RARITY_SAMPLE), len(model.token_weights)))
    lists = lists[:: -(-len(lists) // PROBE_LISTS)]
    pairs = tokenized.pairs([(group.query, document) for group in lists for document in group.documents])
    features = reranker.features(pairs, note="probe")
    mixture = probe(features.reshape(len(pairs), -1), lists).reshape(features.shape[1:])
    model.mix(torch.tensor(mixture))
    # Pointwise losses and sigmoids want scores around zero.
    model.shift(-float((features * mixture).sum(axis=(1, 2)).mean()))


def probe(features: np.ndarray, lists: Sequence[Group]) -> np.ndarray:
    """Weights (features,) of the linear model of (documents of all lists, features) with the least listwise loss."""
    spread = features.std(axis=0) + 1e-6
    lengths = [len(group.documents) for group in lists]
    split = torch.from_numpy(features / spread).double().split(lengths)
    grades = [torch.tensor(group.grades, dtype=torch.float64) for group in lists]
    padded, labels = (nn.utils.rnn.pad_sequence(list(rows), batch_first=True) for rows in (split, grades))
    labels = nn.functional.pad(labels, (0, padded.shape[1] - labels.shape[1]))
    mask = torch.arange(padded.shape[1])[None, :] < torch.tensor(lengths)[:, None]

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        parameters = torch.tensor(weights, requires_grad=True)
        ridge = PROBE_RIDGE * parameters.square().sum()
        total = LOSSES["listwise"](padded @ parameters, labels, mask, None).mean() + ridge
        (gradient,) = torch.autograd.grad(total, parameters)
        return total.item(), gradient.numpy()

    found = minimize(loss, np.zeros(features.shape[1]), jac=True, method="L-BFGS-B")
    return (found.x / spread).astype(np.float32)


def train(
    recipe: Recipe,
    groups: Sequence[Group],
    lists: Sequence[Group],
    reranker: Reranker,
    tokenized: TokenizedCollection,
    measure: Measure,
    accelerator: Accelerator,
    folder: Path,
) -> Progress:
    """Fine-tune `reranker.model` in place and leave the best state in `folder/best`.

    `lists` are whole lists of candidates that a fresh head is fitted to first; empty where the head is trained already.
    `measure()` gives the two-stage dev score of the model as it stands and the scores of all candidates, which are kept
    beside the best state as `best_dev.npy`; every process calls it.
    Raises RunError where the loss is no longer finite.
    """
    section = recipe.train
    _set_dropout(reranker.model, section.dropout)
    _freeze(reranker, section.frozen_layers)
    plan = steps(len(groups), section, recipe.seed)
    evaluate_at = evaluation_steps(len(plan), section)
    optimizer = _optimizer(section, reranker, fresh_head=bool(lists))
    peaks = [group["lr"] for group in optimizer.param_groups]
    checkpoint = _last_checkpoint(folder)
    if lists and checkpoint is None:
        start_head(reranker, tokenized, lists)
    model, optimizer = accelerator.prepare(ScoringModel(reranker), optimizer)
    engine = _Engine(section, groups, reranker, tokenized, accelerator, model)

    progress = _resume(checkpoint, accelerator) if checkpoint else Progress()
    log = Log(folder, recipe, progress.step) if accelerator.is_main_process else None
    if checkpoint is None:
        torch.manual_seed(recipe.seed + accelerator.process_index)
        _keep_if_best(progress, *measure(), reranker, accelerator, folder, log)
    with console.progress("train", total=len(plan), completed=progress.step) as advance:
        for positions in plan[progress.step :]:
            started = time.monotonic()
            factor = rate_factor(progress.step, len(plan), section.warmup_share)
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * factor
            loss, pairs = engine.gradients(positions)
            if not math.isfinite(loss):
                _stop_not_finite(folder, progress.step, [groups[position] for position in positions], loss)
            accelerator.clip_grad_norm_(model.parameters(), section.max_gradient_norm)
            optimizer.step()
            optimizer.zero_grad()
            progress.step += 1
            speed = pairs / (time.monotonic() - started)
            if log:
                rate = {"learning_rate": peaks[0] * factor, "epoch": progress.step * section.epochs / len(plan)}
                log.write(progress.step, loss=loss, pairs_per_second=round(speed, 2), padding=engine.padding, **rate)
            advance(1, f"loss {loss:.4f}  {speed:.1f} pairs/s  rate {peaks[0] * factor:.1e}")
            if progress.step in evaluate_at:
                _keep_if_best(progress, *measure(), reranker, accelerator, folder, log)
            if progress.step % section.checkpoint_steps == 0 or progress.step in evaluate_at:
                _checkpoint(progress, accelerator, folder)
    if log:
        log.close()
    return progress


def _optimizer(section: Train, reranker: Reranker, fresh_head: bool) -> torch.optim.AdamW:
    """AdamW: matrices of the encoder decay, vectors do not; a fresh head's own weights have a faster rate and no decay.

    The interaction head's linear term over the first state counts as encoder: hundreds of weights that all move at the
    fast rate outvote the comparison of tokens within a few steps.
    """
    named = {name: weight for name, weight in reranker.model.named_parameters() if weight.requires_grad}
    fast = [name for name in named if name in ("mixture", "token_weights")]
    if not reranker.is_interaction:
        encoder = dict(reranker.model.base_model.named_parameters(prefix=reranker.model.base_model_prefix))
        fast = [name for name in named if name not in encoder]
    size = sum(weight.numel() for weight in named.values())
    rate = section.learning_rate or default_rate(size, fresh_head and not reranker.is_interaction)
    usual = HEAD_RATES["interaction" if reranker.is_interaction else "classifier"] if fresh_head else rate
    slow = [(name, weight) for name, weight in named.items() if name not in fast]
    matrices, vectors = ([weight for _, weight in slow if (weight.ndim > 1) == matrix] for matrix in (True, False))
    return torch.optim.AdamW(
        [
            {"params": matrices, "lr": rate, "weight_decay": section.weight_decay},
            {"params": vectors, "lr": rate, "weight_decay": 0.0},
            {"params": [named[name] for name in fast], "lr": section.head_learning_rate or usual, "weight_decay": 0.0},
        ]
    )


def _freeze(reranker: Reranker, layers: int) -> None:
    """Let the embeddings and the lowest layers be: no gradient goes through them, which is most of a step's time."""
    if not layers:
        return
    encoder = reranker.model.encoder if reranker.is_interaction else reranker.model.base_model
    depth = encoder.config.num_hidden_layers
    stack = next(module for module in encoder.modules() if isinstance(module, nn.ModuleList) and len(module) == depth)
    if layers > depth:
        raise RunError(f"train.frozen_layers: {layers}, but the model has {depth} layers; lower it")
    for module in (encoder.get_input_embeddings(), encoder.embeddings, *stack[:layers]):
        module.requires_grad_(False)


def _set_dropout(model: nn.Module, share: float) -> None:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = share


class _Engine:
    """Turns a step's groups into gradients, and says how much of the work was padding."""

    def __init__(
        self,
        section: Train,
        groups: Sequence[Group],
        reranker: Reranker,
        tokenized: TokenizedCollection,
        accelerator: Accelerator,
        model: nn.Module,
    ) -> None:
        self.section = section
        self.groups = groups
        self.pairs = reranker.pairs
        self.tokenized = tokenized
        self.accelerator = accelerator
        self.model = model
        self.loss: Loss = LOSSES[section.loss]
        self.highest = max(max(group.grades) for group in groups)
        self.sizes = {id(group): sum(map(self.pairs.size, self._pairs_of([group]))) for group in groups}
        self.real_tokens = self.padded_tokens = 0

    @property
    def padding(self) -> float:
        """Share of the tokens computed so far, on this process, that were padding."""
        return round(1 - self.real_tokens / max(1, self.padded_tokens), 4)

    def gradients(self, positions: Sequence[int]) -> tuple[float, int]:
        """Add the gradients of one step; returns its loss (mean over its groups) and its pairs, over all processes."""
        self.model.train()
        total = torch.zeros(2, dtype=torch.float64)
        passes = list(self._passes(self._share(positions)))
        for number, (groups, weight) in enumerate(passes, start=1):
            last = number == len(passes)
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                losses = self._losses(groups)
                # Data parallelism averages over processes; the loss is a sum over them, divided by the whole step.
                share = losses.sum() * weight / len(positions)
                self.accelerator.backward(share * self.accelerator.num_processes)
            pairs = sum(len(group.documents) for group in groups)
            total += weight * torch.tensor([float(share.detach()), pairs], dtype=torch.float64)
        total = total.to(self.accelerator.device, torch.float32)
        summed: Any = self.accelerator.reduce(total, "sum")
        return float(summed[0]), int(summed[1])

    def _share(self, positions: Sequence[int]) -> list[Group]:
        """This process's groups of the step: dealt by size, so that all processes have about the same work."""
        by_size = sorted((self.groups[position] for position in positions), key=self._size, reverse=True)
        return by_size[self.accelerator.process_index :: self.accelerator.num_processes]

    def _passes(self, groups: list[Group]) -> Iterator[tuple[list[Group], float]]:
        """Groups under the token budget with their weight; an idle process does the step's first group for nothing."""
        if not groups:
            yield [self.groups[0]], 0.0
            return
        taken: list[Group] = []
        for group in groups:
            if taken and sum(map(self._size, taken)) + self._size(group) > self.section.tokens_per_pass:
                yield taken, 1.0
                taken = []
            taken.append(group)
        yield taken, 1.0

    def _size(self, group: Group) -> int:
        """Tokens of all pairs of a group."""
        return self.sizes[id(group)]

    def _pairs_of(self, groups: Sequence[Group]) -> list[tuple[Tokens, Tokens]]:
        return self.tokenized.pairs([(group.query, document) for group in groups for document in group.documents])

    def _losses(self, groups: Sequence[Group]) -> Tensor:
        """Loss of each group (groups,): all pairs scored in length-sorted buckets, then laid out group by group."""
        pairs = self._pairs_of(groups)
        device = self.accelerator.device
        sizes = [self.pairs.size(pair) for pair in pairs]
        cut = buckets(sizes, TOKENS_PER_BUCKET.get(device.type, 4096))
        batches = [self.pairs.pad([pairs[position] for position in positions]) for positions in cut]
        self.real_tokens += sum(sizes)
        self.padded_tokens += sum(batch["input_ids"].numel() for batch in batches)
        flat = torch.empty(len(pairs), device=device)
        flat = flat.index_copy(0, torch.tensor(sum(cut, []), device=device), self.model(batches))

        width = max(len(group.documents) for group in groups)
        lengths = torch.tensor([len(group.documents) for group in groups], device=device)
        mask = torch.arange(width, device=device)[None, :] < lengths[:, None]
        scores = torch.zeros(mask.shape, device=device).masked_scatter(mask, flat)
        labels = torch.zeros(mask.shape, device=device)
        teacher = torch.zeros(mask.shape, device=device) if groups[0].teacher else None
        for row, group in enumerate(groups):
            labels[row, : len(group.grades)] = torch.tensor(group.grades, device=device) / self.highest
            if teacher is not None:
                teacher[row, : len(group.documents)] = torch.tensor(group.teacher, device=device)
        return self.loss(scores, labels, mask, teacher)


def _keep_if_best(
    progress: Progress,
    score: float,
    scores: np.ndarray,
    reranker: Reranker,
    accelerator: Accelerator,
    folder: Path,
    log: Log | None,
) -> None:
    """Note a dev score and keep the model, and what it scored, where it is the best so far."""
    progress.curve.append((progress.step, score))
    best = score > progress.best_score
    if best:
        progress.best_score, progress.best_step = score, progress.step
    if accelerator.is_main_process:
        if best:
            np.save(folder / "best_dev.npy", scores)
            reranker.save(folder / "best")
        assert log is not None
        log.write(progress.step, dev_score=score)
        console.stage("train", f"step {progress.step:>5}  dev {score:.4f}{'  best so far' if best else ''}")
    accelerator.wait_for_everyone()


def _checkpoint(progress: Progress, accelerator: Accelerator, folder: Path) -> None:
    """Save everything that the next step depends on; the rename makes it count, then the one before it goes."""
    partial = folder / "checkpoint.partial"
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(partial))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        write_json(partial / "progress.json", asdict(progress) | {"processes": accelerator.num_processes})
        partial.replace(folder / f"checkpoint-{progress.step:07d}")
        for older in sorted(folder.glob("checkpoint-*"))[:-1]:
            shutil.rmtree(older)
    accelerator.wait_for_everyone()


def _last_checkpoint(folder: Path) -> Path | None:
    return max(folder.glob("checkpoint-*"), default=None)


def _resume(checkpoint: Path, accelerator: Accelerator) -> Progress:
    """Take weights, optimizer and random numbers from a checkpoint; the rest is in its progress.json."""
    accelerator.load_state(str(checkpoint))
    notes = read_json(checkpoint / "progress.json")
    processes = notes.pop("processes")
    notes["curve"] = [(step, score) for step, score in notes["curve"]]
    progress = Progress(**notes)
    console.stage("train", f"resumed at step {progress.step} from {checkpoint.name}")
    if processes != accelerator.num_processes:
        message = f"{processes} processes before, {accelerator.num_processes} now: same steps, but not the same bits"
        console.warn("train", message)
    return progress


def _stop_not_finite(folder: Path, step: int, groups: Sequence[Group], loss: float) -> NoReturn:
    """Keep the step's groups for inspection and say what to do."""
    path = folder / "not_finite.json"
    write_json(path, [asdict(group) for group in groups])
    raise RunError(
        f"train: the loss of step {step + 1} is {loss}; its groups are in {path}. "
        "Lower train.learning_rate, or train without mixed precision."
    )
