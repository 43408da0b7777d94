"""The engine that computes a model's logits: torch, or on a CPU ONNX Runtime with a format of the model's folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from trainer import inference
from trainer.errors import ModelError, one_line
from trainer.inference import Format
from trainer.model import packing
from trainer.model.batching import random_pairs
from trainer.model.word_gradients import words_in_place
from trainer.model_files import references
from trainer.runtime import console
from trainer.runtime.linear import MANY, scoring_in
from trainer.runtime.precision import autocast, bf16_speedup, median_seconds

Engine = Literal["torch", "onnx", "onnx-fused", "onnx-int8"]
Logits = Callable[[Any, packing.Batch, bool], Tensor]  # as `packing.logits`


def choose(reranker: Any, requested: Engine | Literal["auto"], reference: str, folder: Path) -> tuple[Engine, Logits]:
    """Return the engine that `requested` means for a model from a folder, and the function that computes its logits.

    `auto` is the fastest one on this machine, of torch and the formats that passed their gate; the choice is printed
    with its measurements. Raises ModelError if an ONNX format that is asked for by name is missing or cannot be opened.
    """
    if requested == "torch":
        return requested, packing.logits
    if requested != "auto":
        return requested, _open(requested, reference, folder)
    opened: dict[Engine, Logits] = {"torch": packing.logits}
    if reranker.device.type != "cpu":
        console.stage("engine", f"torch: the others compute on a CPU, and the model is on {reranker.device.type}")
        return "torch", packing.logits
    for name in inference.passed(folder):
        try:
            opened[name] = _open(name, reference, folder)
        except ModelError as error:
            console.warn("engine", f"{error}; left out")
    if len(opened) == 1:
        console.stage("engine", "torch: the model has no other format that passed its gate and can be opened here")
        return "torch", packing.logits
    speeds = _speeds(reranker, opened)
    best = max(speeds, key=lambda name: speeds[name])
    measured = ", ".join(f"{name} {speed:.1f}" for name, speed in speeds.items())
    console.stage("engine", f"{best} is the fastest here ({measured} pairs/s; torch in {reranker.precision})")
    return best, opened[best]


def _open(name: Format, reference: str, folder: Path) -> Logits:
    """Return the function that computes logits with a format of the folder; raises ModelError if that is impossible."""
    if name not in inference.passed(folder):
        raise ModelError(
            f"model {reference}: it has no {name} that passed its quality gate; export it with export.formats: "
            f"[{name}] (the model card says why a format was left out), or use the engine torch"
        )
    if find_spec("onnxruntime") is None:
        raise ModelError(f"engine {name}: onnxruntime is not installed; pip install 'domain-reranker[onnx]'")
    path = folder / inference.FILES[name]
    references.fetch(reference, [f"{inference.FILES[name].as_posix()}*"])
    try:
        session = inference.Session(path)
    except Exception as error:  # ONNX Runtime has no common class of errors
        raise ModelError(
            f"model {reference}: ONNX Runtime cannot open {path} ({one_line(error)[:200]}); fetch or export it again"
        ) from None
    return computed_by(session)


def computed_by(session: inference.Session) -> Logits:
    """Return the function that computes logits with an opened graph."""
    return lambda model, batch, packed: session.logits(batch)


def _speeds(reranker: Any, opened: Mapping[Engine, Logits]) -> dict[Engine, float]:
    """Return each engine's pairs per second on pairs of random tokens."""
    batches = random_batches(reranker)
    pairs = sum(len(batch["input_ids"]) for batch in batches)

    def compute(logits: Logits) -> None:
        with torch.no_grad(), scoring_in(reranker.model, reranker.device, reranker.precision, pairs):
            for batch in batches:
                logits(reranker.model, batch, False)

    seconds = median_seconds({name: lambda logits=logits: compute(logits) for name, logits in opened.items()})
    return {name: pairs / seconds[name] for name in opened}


def speedup_of_bf16(reranker: Any, training: bool) -> float:
    """Return the speedup of bf16 over fp32 in scoring, or in training, measured on pairs of random tokens."""
    batches = random_batches(reranker, training)

    def compute() -> None:
        with torch.set_grad_enabled(training), words_in_place(reranker.model):
            if training:
                packing.training_logits(reranker.model, batches, packed=False).sum().backward()
            else:
                for batch in batches:
                    packing.logits(reranker.model, batch, packed=False)

    scoring = partial(scoring_in, reranker.model, reranker.device, texts=MANY)
    speedup = bf16_speedup(compute, partial(autocast, reranker.device) if training else scoring)
    reranker.model.zero_grad()
    return speedup


def random_batches(reranker: Any, training: bool = False) -> list[packing.Batch]:
    """Return pairs of random tokens of different lengths, in the buckets that real ones would have."""
    pairs = random_pairs(reranker.model.config.vocab_size, reranker.max_length)
    return reranker.batches(pairs, training=training)[1]
