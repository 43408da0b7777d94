"""Gradients of one step, within the memory of the device.

A step is split into passes under a token budget; the loss is divided by the number of groups of the full step, so that
it does not depend on the split. A group over the budget is computed twice, bucket by bucket (GradCache), so that its
size costs time but no memory. If memory still runs out, the budget is halved and the step repeated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from trainer.data.groups import Group
from trainer.errors import RunError
from trainer.model import Batches, ChosenWindows, Reranker, TokenizedCollection
from trainer.model.batching import Tokens, within
from trainer.model.packing import Batch
from trainer.model.word_gradients import words_in_place
from trainer.recipe import Train
from trainer.runtime import console
from trainer.training.losses import LOSSES, Loss
from trainer.training.parallel import is_sharded, no_gradient_sync, sync_gradients

SMALLEST_BUDGET = 512  # tokens: a pair or two; smaller passes would not help
MEMORY_ADVICE = "lower reranker.max_length or mine.negatives_per_positive, or set train.gradient_checkpointing=true"


class Targets(NamedTuple):
    """The targets of a pass: (groups, documents of the largest group) each, on the device; float32, `mask` bool."""

    labels: Tensor
    mask: Tensor
    teacher: Tensor | None
    first: Tensor | None


class Pass(NamedTuple):
    """Groups whose gradients are computed together: their pairs in padded batches, on the CPU.

    `pair_indices` (pairs,) int64 are the places of the scores, in the order of the batches, among the groups' pairs.
    `added` (pairs,) float32 is what lexical signals beside the model add to each pair's logit.
    """

    groups: list[Group]
    batches: list[Batch]
    pair_indices: Tensor
    added: Tensor
    fits: bool  # within the token budget


class Step(NamedTuple):
    """This process's passes of a step on the groups at `positions`, cut under a token budget."""

    positions: Sequence[int]
    passes: list[Pass]
    pairs: int
    scale: float  # of the loss of a group
    budget: int


class GradientStep:
    """Accumulates the gradients of a step's groups, and counts the share of padding."""

    def __init__(
        self,
        section: Train,
        groups: Sequence[Group],
        reranker: Reranker,
        tokenized: TokenizedCollection | ChosenWindows,
        accelerator: Accelerator,
        model: nn.Module,
    ) -> None:
        self.budget = section.tokens_per_pass
        self.groups = groups
        self.tokenized = tokenized
        self.accelerator = accelerator
        self.device = accelerator.device
        self.model = model
        self.reranker = reranker
        self.in_place = not section.compile and not is_sharded(accelerator)
        self.loss: Loss = LOSSES[section.loss]
        self.first_stage_weight = 0.0  # of the first stage's scores in the loss, in logits; set by the loop
        self.max_grade = max(max(group.grades) for group in groups)
        self.sizes = [sum(map(self.reranker.pairs.size, self._pairs_of([group]))) for group in groups]
        self.one_pair = self.reranker.pad(self._pairs_of(groups[:1])[:1])  # the pass that synchronises gradients
        self.real_tokens = self.computed_tokens = 0

    @property
    def padding(self) -> float:
        """The share of padding in the tokens computed so far on this process."""
        return round(1 - self.real_tokens / max(1, self.computed_tokens), 4)

    def prepare(self, positions: Sequence[int]) -> Step:
        """Return the passes of one step; it does not touch the model, so another thread may do it before the step."""
        share, budget = self._own_groups(positions), self.budget
        # A process without a group computes one with weight 0, because sharded weights are gathered in the first pass.
        computed, scale = (share, 1 / len(positions)) if share else ([0], 0.0)
        sizes = [self.sizes[position] for position in computed]
        passes = [self._pass(taken, budget) for taken in within(budget, computed, sizes)]
        return Step(positions, passes, sum(len(self.groups[position].documents) for position in share), scale, budget)

    def accumulate(self, step: Step) -> Tensor:
        """Accumulate the gradients of one step, and return its mean loss over groups and number of pairs (2,) float32.

        Both are over all processes, and on the device, so that reading them is left to the caller. Gradients are
        synchronised in a last pass of a single pair, after every process has computed its own, so that a process that
        ran out of memory can repeat its part alone. Raises RunError if that does not help.
        """
        self.model.train()
        start = _random_state(self.device)
        if step.budget != self.budget:  # prepared before memory ran out
            step = self.prepare(step.positions)
        while (total := self._attempt(step)) is None:
            self._halve_budget()
            self.model.zero_grad()
            _set_random_state(self.device, start)
            step = self.prepare(step.positions)
        sync_gradients(self.accelerator, self.model, self.one_pair)
        summed: Any = self.accelerator.reduce(total, "sum")
        return summed

    def _attempt(self, step: Step) -> Tensor | None:
        """Return the loss and number of pairs (2,) of this process's part of the step, None if memory ran out."""
        losses = []
        try:
            with no_gradient_sync(self.accelerator, self.model), words_in_place(self.reranker.model, self.in_place):
                for one in step.passes:
                    self._count(one)
                    backward = self._backward_at_once if one.fits else self._backward_by_buckets
                    losses.append(backward(one, step.scale))
        except torch.OutOfMemoryError:
            if is_sharded(self.accelerator):
                raise self._out_of_memory() from None
            return None
        return torch.stack([torch.stack(losses).sum(), torch.tensor(float(step.pairs), device=self.device)])

    def _halve_budget(self) -> None:
        """Halve the token budget; raises RunError below SMALLEST_BUDGET."""
        half = self.budget // 2
        if half < SMALLEST_BUDGET:
            raise RunError(f"train: out of memory with only {self.budget} tokens in a pass; {MEMORY_ADVICE}")
        console.warn(
            "train",
            f"out of memory with {self.budget} tokens in a pass; the step is repeated with {half}. "
            f"Set train.tokens_per_pass={half} to begin with that.",
        )
        self.budget = half
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # cached blocks have the sizes of the larger passes

    def _own_groups(self, positions: Sequence[int]) -> list[int]:
        """Return this process's groups of the step, distributed by size so that processes have similar work."""
        by_size = sorted(positions, key=lambda position: self.sizes[position], reverse=True)
        return by_size[self.accelerator.process_index :: self.accelerator.num_processes]

    def _pass(self, positions: Sequence[int], budget: int) -> Pass:
        """Return the groups at `positions` with all their pairs in padded batches."""
        groups = [self.groups[position] for position in positions]
        pairs = self._pairs_of(groups)
        cut, batches = self.reranker.batches(pairs, budget, training=True)
        fits = sum(self.sizes[position] for position in positions) <= budget
        added = torch.from_numpy(self.reranker.added(pairs))
        return Pass(groups, batches, torch.tensor(sum(cut, [])), added, fits)

    def _count(self, one: Pass) -> None:
        """Count the tokens of a pass."""
        real = sum(int(batch["attention_mask"].sum()) for batch in one.batches)
        self.real_tokens += real
        self.computed_tokens += (
            real if self.reranker.packed else sum(batch["input_ids"].numel() for batch in one.batches)
        )

    def _pairs_of(self, groups: Sequence[Group]) -> list[tuple[Tokens, Tokens]]:
        """Return the token pairs of all documents of the groups."""
        return self.tokenized.pairs([(group.query, document) for group in groups for document in group.documents])

    def _backward_at_once(self, one: Pass, scale: float) -> Tensor:
        """Accumulate the gradients of `scale` times the summed loss of the groups, and return that loss."""
        loss = self._loss(one, self.model(Batches(one.batches))) * scale
        self._backward(loss)
        return loss.detach()

    def _backward_by_buckets(self, one: Pass, scale: float) -> Tensor:
        """Do the same with the graph of one bucket in memory at a time (GradCache: Gao et al., RepL4NLP 2021).

        All scores are computed without a graph, and the loss gives their gradients; then every bucket is computed again
        with the same random numbers, and the score gradients are propagated through it.
        """
        states, parts = [], []
        for batch in one.batches:
            states.append(_random_state(self.device))
            with torch.no_grad():
                parts.append(self.model(Batches([batch])))
        scores = torch.cat(parts).requires_grad_()
        loss = self._loss(one, scores) * scale
        (gradient,) = torch.autograd.grad(loss, scores)
        score_gradients = gradient.split([len(part) for part in parts])
        for batch, state, score_gradient in zip(one.batches, states, score_gradients, strict=True):
            _set_random_state(self.device, state)
            self._backward((self.model(Batches([batch])) * score_gradient).sum())
        return loss.detach()

    def _backward(self, loss: Tensor) -> None:
        """Accumulate gradients without the mean over processes: the loss is divided by the groups of the full step."""
        self.accelerator.backward(loss * self.accelerator.num_processes)

    def _out_of_memory(self) -> RunError:
        """Return the error for running out of memory under FSDP, where other processes wait for this one's weights."""
        half = self.budget // 2
        advice = f"set train.tokens_per_pass={half}" if half >= SMALLEST_BUDGET else MEMORY_ADVICE
        console.console.quiet = False  # this process has to report it: the main one may not be affected
        return RunError(
            f"train: out of memory with {self.budget} tokens in a pass on process {self.accelerator.process_index}, "
            f"and a step under FSDP cannot be repeated; {advice}"
        )

    def _targets(self, groups: Sequence[Group]) -> Targets:
        """Return the padded targets of the groups, with grades divided by the largest grade of all groups."""
        mask = pad_sequence([torch.ones(len(group.documents), dtype=torch.bool) for group in groups], batch_first=True)

        def padded_rows(values: Sequence[Sequence[float]]) -> Tensor:
            padded = pad_sequence([torch.tensor(row, dtype=torch.float32) for row in values], batch_first=True)
            return nn.functional.pad(padded, (0, mask.shape[1] - padded.shape[1])).to(self.device, non_blocking=True)

        teacher = [group.teacher for group in groups if group.teacher]
        first = [group.first for group in groups if group.first]
        labels = padded_rows([group.grades for group in groups]) / self.max_grade
        mask = mask.to(self.device, non_blocking=True)
        optional = (padded_rows(scores) if scores else None for scores in (teacher, first))
        return Targets(labels, mask, *optional)

    def _loss(self, one: Pass, scores: Tensor) -> Tensor:
        """Return the summed loss () of a pass's groups from scores (pairs,) in the order of the batches.

        With a first-stage weight, it is the mean of the loss of the model's scores and of the loss of the fused scores,
        because the model is used in both ways.
        """
        targets = self._targets(one.groups)
        indices = one.pair_indices.to(self.device, non_blocking=True)
        flat = torch.empty_like(scores).index_copy(0, indices, scores) + one.added.to(self.device, non_blocking=True)
        matrix = torch.zeros_like(targets.labels).masked_scatter(targets.mask, flat)
        alone = self.loss(matrix, targets.labels, targets.mask, targets.teacher).sum()
        if targets.first is None or not self.first_stage_weight:
            return alone
        fused = matrix + self.first_stage_weight * targets.first
        return (alone + self.loss(fused, targets.labels, targets.mask, targets.teacher).sum()) / 2


def _generators(device: torch.device) -> list[Any]:
    """Return the random generators that dropout uses: the CPU's and the device's."""
    return [torch] if device.type == "cpu" else [torch, torch.get_device_module(device)]


def _random_state(device: torch.device) -> list[Tensor]:
    return [generator.get_rng_state() for generator in _generators(device)]


def _set_random_state(device: torch.device, state: list[Tensor]) -> None:
    for generator, numbers in zip(_generators(device), state, strict=True):
        generator.set_rng_state(numbers)
