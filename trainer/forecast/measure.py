"""Time a cross-encoder in scoring and in training, and count the bytes that training keeps."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from trainer.forecast.records import Clock, PairSpeed, Training
from trainer.model import Reranker, packing
from trainer.model.batching import Tokens
from trainer.model.word_gradients import words_in_place
from trainer.runtime.precision import Precision, autocast
from trainer.training.optimizer import configure_model, make_optimizer

SECONDS = 1.5  # least duration of a measurement that counts
FIRST, MOST = 4, 1024  # texts or pairs of the first round, and of the largest; each round has twice as many


def measure_reranker(
    reranker: Reranker,
    pairs: Sequence[tuple[Tokens, Tokens]],
    precision: Precision,
    training: Training | None,
    load: float,
    clock: Clock = time.perf_counter,
) -> PairSpeed:
    """Return the speed of a loaded cross-encoder on token pairs; with `training` also that of training it."""

    def score(count: int) -> None:
        reranker.score_tokens([pairs[at % len(pairs)] for at in range(count)])

    reranker.compute_in("fp32")
    exact = fast = seconds_per_item(score, clock)
    reranker.compute_in(precision)
    if precision != "fp32":
        fast = seconds_per_item(score, clock)
    learn = step = activations = 0.0
    weights = reranker.model.parameters
    parameters = trained = sum(weight.numel() for weight in weights())
    if training is not None:
        learn, step, activations = _measure_training(reranker, pairs, training, clock)
        trained = sum(weight.numel() for weight in weights() if weight.requires_grad)
    tokens = float(np.mean([reranker.pairs.size(pair) for pair in pairs]))
    return PairSpeed(load, exact, fast, learn, step, precision, parameters, trained, activations, tokens)


def seconds_per_item(compute: Callable[[int], object], clock: Clock = time.perf_counter) -> float:
    """Return the seconds that `compute(count)` takes for each item, in rounds of twice as many items.

    The first round only warms up. A round of SECONDS is the last one; so is one for whose double memory runs out.
    """
    compute(FIRST)
    count, rate = FIRST, 0.0
    while True:
        begun = clock()
        try:
            compute(count)
        except torch.OutOfMemoryError:
            if not rate:
                raise
            return rate
        rate = (clock() - begun) / count
        if rate * count >= SECONDS or count >= MOST:
            return rate
        count *= 2


def _measure_training(
    reranker: Reranker, pairs: Sequence[tuple[Tokens, Tokens]], training: Training, clock: Clock
) -> tuple[float, float, float]:
    """Return seconds of a pair forward and backward, seconds of an optimizer step, and bytes kept for each token."""
    section = training.section.model_copy(update={"compile": False})  # compiling takes longer than all of this
    configure_model(section, reranker)
    optimizer = make_optimizer(section, reranker, training.fresh_head)
    reranker.model.train()

    def learn(count: int) -> None:
        for start in range(0, count, size):
            _losses(reranker, [pairs[at % len(pairs)] for at in range(start, min(start + size, count))]).backward()

    tokens = [reranker.pairs.size(pair) for pair in pairs]
    size = max(1, int(section.tokens_per_pass / float(np.mean(tokens))))
    activations = _kept_bytes(reranker, pairs[:FIRST]) / sum(tokens[:FIRST])
    seconds = seconds_per_item(learn, clock)
    optimizer.step()  # makes its states
    begun = clock()
    optimizer.step()
    _wait(reranker.device)
    step = clock() - begun
    reranker.model.zero_grad()
    reranker.model.eval()
    return seconds, step, activations


def _losses(reranker: Reranker, pairs: Sequence[tuple[Tokens, Tokens]]) -> Tensor:
    """Return the sum of the scores of one training pass, with its graph."""
    _, batches = reranker.batches(pairs, training=True)
    with autocast(reranker.device, reranker.precision), words_in_place(reranker.model):
        return packing.training_logits(reranker.model, batches, reranker.packed).sum()


def _kept_bytes(reranker: Reranker, pairs: Sequence[tuple[Tokens, Tokens]]) -> int:
    """Return the bytes that the forward pass of pairs keeps for its backward pass, without the weights."""
    weights = {weight.untyped_storage().data_ptr() for weight in reranker.model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        _losses(reranker, pairs).backward()
    return sum(kept.values())


def _wait(device: torch.device) -> None:
    """Wait until a GPU has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
