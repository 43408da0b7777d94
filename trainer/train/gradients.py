"""A step's groups to gradients, in the memory that there is.

A step is cut into passes under a token budget; the loss is divided by the groups of the whole step, so it does not
depend on how the step was spread. A group over the budget is read twice, bucket by bucket, so that its size costs time
but no memory. Where memory runs out all the same, the budget is halved and the step done again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from torch import Tensor, nn

from trainer import console
from trainer.batches import Tokens
from trainer.errors import RunError
from trainer.groups import Group
from trainer.losses import LOSSES, Loss
from trainer.recipe import Train
from trainer.reranker import Reranker, TokenizedCollection
from trainer.train.devices import exchange, is_sharded, no_exchange

SMALLEST_BUDGET = 512  # tokens: a pair or two; what does not fit then is not a matter of passes
NO_ROOM = "lower reranker.max_length or mine.negatives_per_positive, or set train.gradient_checkpointing=true"


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
        self.sharded = is_sharded(accelerator)
        self.model = model
        self.reranker = reranker
        self.loss: Loss = LOSSES[section.loss]
        self.highest = max(max(group.grades) for group in groups)
        self.sizes = {id(group): sum(map(self.reranker.pairs.size, self._pairs_of([group]))) for group in groups}
        self.real_tokens = self.read_tokens = 0

    @property
    def padding(self) -> float:
        """Share of the tokens computed so far, on this process, that were padding."""
        return round(1 - self.real_tokens / max(1, self.read_tokens), 4)

    def gradients(self, positions: Sequence[int]) -> tuple[float, int]:
        """Add the gradients of one step; returns its loss (mean over its groups) and its pairs, over all processes.

        Raises RunError where memory does not suffice.
        """
        self.model.train()
        start = _random_state(self.device)
        while (total := self._attempt(positions)) is None:
            self._halve()
            self.model.zero_grad()
            _set_random_state(self.device, start)
        summed: Any = self.accelerator.reduce(total.to(self.device, torch.float32), "sum")
        return float(summed[0]), int(summed[1])

    def _attempt(self, positions: Sequence[int]) -> Tensor | None:
        """Loss and pairs (2,) of this process's part of the step, or None where memory ran out on the way."""
        total = torch.zeros(2, dtype=torch.float64)
        groups = self._share(positions)
        weight = 1.0 if groups else 0.0  # an idle process does one group for nothing: all have to exchange gradients
        passes = list(self._passes(groups or [self.groups[0]]))
        try:
            for number, taken in enumerate(passes, start=1):
                fits = sum(map(self._size, taken)) <= self.budget
                backward = self._backward_at_once if fits else self._backward_by_buckets
                exchanges = number == len(passes) and not self.sharded
                loss = backward(taken, weight / len(positions), exchanges)
                pairs = sum(len(group.documents) for group in taken)
                total += torch.tensor([loss, weight * pairs], dtype=torch.float64)
            if self.sharded:
                exchange(self.accelerator, self.model, self.reranker.pairs.pad(self._pairs_of(self.groups[:1])[:1]))
        except torch.OutOfMemoryError:
            if self.sharded:
                raise self._not_again() from None
            return None
        return total

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

    def _share(self, positions: Sequence[int]) -> list[Group]:
        """This process's groups of the step: dealt by size, so that all processes have about the same work."""
        by_size = sorted((self.groups[position] for position in positions), key=self._size, reverse=True)
        return by_size[self.accelerator.process_index :: self.accelerator.num_processes]

    def _passes(self, groups: list[Group]) -> Iterator[list[Group]]:
        """Groups under the token budget; one that is larger makes a pass of its own."""
        taken: list[Group] = []
        for group in groups:
            if taken and sum(map(self._size, taken)) + self._size(group) > self.budget:
                yield taken
                taken = []
            taken.append(group)
        yield taken

    def _size(self, group: Group) -> int:
        """Tokens of all pairs of a group."""
        return self.sizes[id(group)]

    def _pairs_of(self, groups: Sequence[Group]) -> list[tuple[Tokens, Tokens]]:
        return self.tokenized.pairs([(group.query, document) for group in groups for document in group.documents])

    def _backward_at_once(self, groups: Sequence[Group], scale: float, last: bool) -> float:
        """Add the gradients of `scale` times the loss of one pass, and return that; `last` of the step or not."""
        batches, places = self._batches(groups)
        with self._exchange(last):
            loss = self._losses(groups, self.model(batches), places).sum() * scale
            self._backward(loss)
        return float(loss.detach())

    def _backward_by_buckets(self, groups: Sequence[Group], scale: float, last: bool) -> float:
        """The same, with the graph of only one bucket in memory at a time (GradCache: Gao et al., RepL4NLP 2021).

        Scores come first, without a graph; the loss gives each score's gradient; then every bucket is read again, with
        the random numbers of the first time, and its scores' gradients are taken back through it.
        """
        batches, places = self._batches(groups)
        states, parts = [], []
        for batch in batches:
            states.append(_random_state(self.device))
            with torch.no_grad():
                parts.append(self.model([batch]))
        scores = torch.cat(parts).requires_grad_()
        loss = self._losses(groups, scores, places).sum() * scale
        (gradient,) = torch.autograd.grad(loss, scores)
        slopes = gradient.split([len(part) for part in parts])
        for number, (batch, state, slope) in enumerate(zip(batches, states, slopes, strict=True), start=1):
            _set_random_state(self.device, state)
            with self._exchange(last and number == len(batches)):
                self._backward((self.model([batch]) * slope).sum())
        return float(loss.detach())

    def _backward(self, loss: Tensor) -> None:
        """Data parallelism averages over processes; the loss is a sum over them, divided by the whole step."""
        self.accelerator.backward(loss * self.accelerator.num_processes)

    @contextmanager
    def _exchange(self, last: bool) -> Iterator[None]:
        """Processes exchange gradients in the last backward of a step only; what ran out before can be done again."""
        if not last:
            with no_exchange(self.accelerator, self.model):
                yield
            return
        try:
            yield
        except torch.OutOfMemoryError:
            if self.accelerator.distributed_type == DistributedType.NO:
                raise
            raise self._not_again() from None

    def _not_again(self) -> RunError:
        """What to raise where memory ran out while others wait for what this process holds."""
        half = self.budget // 2
        advice = f"set train.tokens_per_pass={half}" if half >= SMALLEST_BUDGET else NO_ROOM
        console.console.quiet = False  # the other processes, the main one perhaps, do not know of it
        exchanged = "weights or gradients" if self.sharded else "gradients"
        return RunError(
            f"train: out of memory with {self.budget} tokens in a pass while process "
            f"{self.accelerator.process_index} exchanged {exchanged}, which cannot be done again; {advice}"
        )

    def _batches(self, groups: Sequence[Group]) -> tuple[list[dict[str, Tensor]], Tensor]:
        """All pairs of the groups in length-sorted, padded buckets, and the place (pairs,) of each among them."""
        pairs = self._pairs_of(groups)
        sizes = [self.reranker.pairs.size(pair) for pair in pairs]
        cut = self.reranker.buckets(sizes, self.budget)
        batches = [self.reranker.pairs.pad([pairs[position] for position in positions]) for positions in cut]
        self.real_tokens += sum(sizes)
        self.read_tokens += sum(sizes) if self.reranker.packed else sum(batch["input_ids"].numel() for batch in batches)
        return batches, torch.tensor(sum(cut, []), device=self.device)

    def _losses(self, groups: Sequence[Group], scores: Tensor, places: Tensor) -> Tensor:
        """Loss of each group (groups,), from the scores of its pairs as they stood in the buckets."""
        device = self.device
        flat = torch.empty(len(places), device=device).index_copy(0, places, scores)
        width = max(len(group.documents) for group in groups)
        lengths = torch.tensor([len(group.documents) for group in groups], device=device)
        mask = torch.arange(width, device=device)[None, :] < lengths[:, None]
        matrix = torch.zeros(mask.shape, device=device).masked_scatter(mask, flat)
        labels = torch.zeros(mask.shape, device=device)
        teacher = torch.zeros(mask.shape, device=device) if groups[0].teacher else None
        for row, group in enumerate(groups):
            labels[row, : len(group.grades)] = torch.tensor(group.grades, device=device) / self.highest
            if teacher is not None:
                teacher[row, : len(group.documents)] = torch.tensor(group.teacher, device=device)
        return self.loss(matrix, labels, mask, teacher)


def _generators(device: torch.device) -> list[Any]:
    """What dropout draws from: the CPU's random numbers and the device's."""
    return [torch] if device.type == "cpu" else [torch, torch.get_device_module(device)]


def _random_state(device: torch.device) -> list[Tensor]:
    return [generator.get_rng_state() for generator in _generators(device)]


def _set_random_state(device: torch.device, state: list[Tensor]) -> None:
    for generator, numbers in zip(_generators(device), state, strict=True):
        generator.set_rng_state(numbers)
