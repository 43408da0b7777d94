"""A step's groups to gradients, in the memory that there is.

A step is cut into passes under a token budget; the loss is divided by the groups of the whole step, so it does not
depend on how the step was spread. A group over the budget is read twice, bucket by bucket, so that its size costs time
but no memory. Where memory runs out all the same, the budget is halved and the step done again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from trainer.data.groups import Group
from trainer.errors import RunError
from trainer.model import Batches, Reranker, TokenizedCollection
from trainer.model.batching import Tokens
from trainer.model.packing import Batch
from trainer.recipe import Train
from trainer.runtime import console
from trainer.training.losses import LOSSES, Loss
from trainer.training.parallel import exchange, is_sharded, no_exchange

SMALLEST_BUDGET = 512  # tokens: a pair or two; what does not fit then is not a matter of passes
NO_ROOM = "lower reranker.max_length or mine.negatives_per_positive, or set train.gradient_checkpointing=true"


class Targets(NamedTuple):
    """What the documents of several groups should come to, on the device: (groups, documents of the largest) each."""

    labels: Tensor
    mask: Tensor
    teacher: Tensor | None
    first: Tensor | None


class Engine:
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
        self.budget = section.tokens_per_pass
        self.groups = groups
        self.tokenized = tokenized
        self.accelerator = accelerator
        self.device = accelerator.device
        self.model = model
        self.reranker = reranker
        self.loss: Loss = LOSSES[section.loss]
        self.first_stage_weight = 0.0  # beside the model's scores, in logits; set by who fitted it
        self.highest = max(max(group.grades) for group in groups)
        self.sizes = [sum(map(self.reranker.pairs.size, self._pairs_of([group]))) for group in groups]
        self.one_pair = self.reranker.pairs.pad(self._pairs_of(groups[:1])[:1])  # gradients are exchanged over it
        self.real_tokens = self.read_tokens = 0

    @property
    def padding(self) -> float:
        """Share of the tokens computed so far, on this process, that were padding."""
        return round(1 - self.real_tokens / max(1, self.read_tokens), 4)

    def gradients(self, positions: Sequence[int]) -> tuple[float, int]:
        """Add the gradients of one step; returns its loss (mean over its groups) and its pairs, over all processes.

        Processes exchange gradients when all of them have theirs, in one more pass of a single pair, so each can do its
        part again by itself where its memory ran out. Raises RunError where memory does not suffice.
        """
        self.model.train()
        start = _random_state(self.device)
        while (total := self._attempt(positions)) is None:
            self._halve()
            self.model.zero_grad()
            _set_random_state(self.device, start)
        exchange(self.accelerator, self.model, self.one_pair)
        summed: Any = self.accelerator.reduce(total, "sum")
        loss, pairs = summed.tolist()
        return loss, int(pairs)

    def _attempt(self, positions: Sequence[int]) -> Tensor | None:
        """Loss and pairs (2,) of this process's part of the step, or None where memory ran out on the way."""
        share = self._share(positions)
        # A process without a group does one for nothing: weights that are shared out are gathered in the first pass.
        scale = 1 / len(positions) if share else 0.0
        losses = []
        try:
            with no_exchange(self.accelerator, self.model):
                for taken in self._passes(share or [0]):
                    fits = sum(self.sizes[position] for position in taken) <= self.budget
                    backward = self._backward_at_once if fits else self._backward_by_buckets
                    losses.append(backward([self.groups[position] for position in taken], scale))
        except torch.OutOfMemoryError:
            if is_sharded(self.accelerator):
                raise self._not_again() from None
            return None
        pairs = sum(len(self.groups[position].documents) for position in share)
        return torch.stack([torch.stack(losses).sum(), torch.tensor(float(pairs), device=self.device)])

    def _halve(self) -> None:
        """Half as many tokens in a pass from here on."""
        half = self.budget // 2
        if half < SMALLEST_BUDGET:
            raise RunError(f"train: out of memory with only {self.budget} tokens in a pass; {NO_ROOM}")
        console.warn(
            "train",
            f"out of memory with {self.budget} tokens in a pass; the step is done again with {half}. "
            f"Set train.tokens_per_pass={half} to begin with that.",
        )
        self.budget = half
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # blocks cut for the larger passes

    def _share(self, positions: Sequence[int]) -> list[int]:
        """This process's groups of the step: dealt by size, so that all processes have about the same work."""
        by_size = sorted(positions, key=lambda position: self.sizes[position], reverse=True)
        return by_size[self.accelerator.process_index :: self.accelerator.num_processes]

    def _passes(self, positions: Sequence[int]) -> Iterator[list[int]]:
        """Groups under the token budget; one that is larger makes a pass of its own."""
        taken: list[int] = []
        tokens = 0
        for position in positions:
            if taken and tokens + self.sizes[position] > self.budget:
                yield taken
                taken, tokens = [], 0
            taken.append(position)
            tokens += self.sizes[position]
        yield taken

    def _pairs_of(self, groups: Sequence[Group]) -> list[tuple[Tokens, Tokens]]:
        return self.tokenized.pairs([(group.query, document) for group in groups for document in group.documents])

    def _backward_at_once(self, groups: Sequence[Group], scale: float) -> Tensor:
        """Add the gradients of `scale` times the loss of one pass, and return that."""
        batches, places = self._batches(groups)
        targets = self._targets(groups)
        loss = self._losses(targets, self.model(Batches(batches)), places).sum() * scale
        self._backward(loss)
        return loss.detach()

    def _backward_by_buckets(self, groups: Sequence[Group], scale: float) -> Tensor:
        """The same, with the graph of only one bucket in memory at a time (GradCache: Gao et al., RepL4NLP 2021).

        Scores come first, without a graph; the loss gives each score's gradient; then every bucket is read again, with
        the random numbers of the first time, and its scores' gradients are taken back through it.
        """
        batches, places = self._batches(groups)
        states, parts = [], []
        for batch in batches:
            states.append(_random_state(self.device))
            with torch.no_grad():
                parts.append(self.model(Batches([batch])))
        scores = torch.cat(parts).requires_grad_()
        loss = self._losses(self._targets(groups), scores, places).sum() * scale
        (gradient,) = torch.autograd.grad(loss, scores)
        slopes = gradient.split([len(part) for part in parts])
        for batch, state, slope in zip(batches, states, slopes, strict=True):
            _set_random_state(self.device, state)
            self._backward((self.model(Batches([batch])) * slope).sum())
        return loss.detach()

    def _backward(self, loss: Tensor) -> None:
        """Data parallelism averages over processes; the loss is a sum over them, divided by the whole step."""
        self.accelerator.backward(loss * self.accelerator.num_processes)

    def _not_again(self) -> RunError:
        """What to raise where memory ran out while other processes wait for the weights that this one holds."""
        half = self.budget // 2
        advice = f"set train.tokens_per_pass={half}" if half >= SMALLEST_BUDGET else NO_ROOM
        console.console.quiet = False  # the other processes, the main one perhaps, do not know of it
        return RunError(
            f"train: out of memory with {self.budget} tokens in a pass on process {self.accelerator.process_index}, "
            f"and a step of weights that are shared out cannot be done again; {advice}"
        )

    def _batches(self, groups: Sequence[Group]) -> tuple[list[Batch], Tensor]:
        """All pairs of the groups in length-sorted, padded buckets, and which pair (pairs,) each score will be of."""
        pairs = self._pairs_of(groups)
        sizes = [self.reranker.pairs.size(pair) for pair in pairs]
        cut = self.reranker.buckets(sizes, self.budget, training=True)
        batches = [self.reranker.pairs.pad([pairs[position] for position in positions]) for positions in cut]
        self.real_tokens += sum(sizes)
        self.read_tokens += sum(sizes) if self.reranker.packed else sum(batch["input_ids"].numel() for batch in batches)
        return batches, torch.tensor(sum(cut, [])).to(self.device, non_blocking=True)

    def _targets(self, groups: Sequence[Group]) -> Targets:
        """Grades as shares of the highest, the teacher's scores, and where there is a document."""
        mask = pad_sequence([torch.ones(len(group.documents), dtype=torch.bool) for group in groups], batch_first=True)

        def rows(values: Sequence[Sequence[float]]) -> Tensor:
            padded = pad_sequence([torch.tensor(row, dtype=torch.float32) for row in values], batch_first=True)
            return nn.functional.pad(padded, (0, mask.shape[1] - padded.shape[1])).to(self.device, non_blocking=True)

        taught = [group.teacher for group in groups if group.teacher]
        first = [group.first for group in groups if group.first]
        labels = rows([group.grades for group in groups]) / self.highest
        mask = mask.to(self.device, non_blocking=True)
        return Targets(labels, mask, rows(taught) if taught else None, rows(first) if first else None)

    def _losses(self, targets: Targets, scores: Tensor, places: Tensor) -> Tensor:
        """Return the loss of each group (groups,), from the scores of its pairs as they stood in the buckets.

        Where the first stage weighs something, it is the mean of the loss alone and of that with the first stage's
        scores added: the model is used in both ways.
        """
        flat = torch.empty_like(scores).index_copy(0, places, scores)
        matrix = torch.zeros_like(targets.labels).masked_scatter(targets.mask, flat)
        alone = self.loss(matrix, targets.labels, targets.mask, targets.teacher)
        if targets.first is None or not self.first_stage_weight:
            return alone
        fused = matrix + self.first_stage_weight * targets.first
        return (alone + self.loss(fused, targets.labels, targets.mask, targets.teacher)) / 2


def _generators(device: torch.device) -> list[Any]:
    """What dropout draws from: the CPU's random numbers and the device's."""
    return [torch] if device.type == "cpu" else [torch, torch.get_device_module(device)]


def _random_state(device: torch.device) -> list[Tensor]:
    return [generator.get_rng_state() for generator in _generators(device)]


def _set_random_state(device: torch.device, state: list[Tensor]) -> None:
    for generator, numbers in zip(_generators(device), state, strict=True):
        generator.set_rng_state(numbers)
