"""Devices and number formats: where a model computes, and in which precision.

Weights, optimizer states, losses and scores are float32 everywhere. `bf16` and `fp16` mean autocast: matrix products
and attention in half precision, with the interaction head's cosines in float32 (interaction.py).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Literal

import torch
from torch import Tensor, nn

from trainer.errors import RecipeError
from trainer.runtime import console
from trainer.runtime.run_folder import read_record, write_json

Precision = Literal["fp32", "bf16", "fp16"]
HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}
# Names in torch.cpu.get_capabilities() of units that multiply bf16 matrices: Intel and AMD, then ARM.
CPU_BF16 = ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16")
# bf16 is chosen from this speedup on. A training that was measured at 1.4 to 1.5 ran no faster (docs/benchmarks.md).
WORTHWHILE = 1.5
CODE = 2  # of the models' forward and backward passes; raised when a speedup measured before no longer holds
MEASURED_SECONDS = 1.0
MEASURED_ROUNDS = 3  # at least, whatever they take


@dataclass(frozen=True)
class Precisions:
    """The precision of each model of a run: the recipe's, or the faster one on this machine.

    Measured speedups are kept in the file `measured`, by machine and model, so that a model is measured once. Of
    several processes the main one asks for all: another machine may have other units, or measure another speedup.
    """

    requested: Precision | Literal["auto"]
    device: torch.device
    measured: Path

    def of(self, stage: str, use: str, model: str, measure: Callable[[], float]) -> Precision:
        """Return the precision of the model with this fingerprint in a use (scoring, training).

        `measure` loads the model and returns how many times as fast it is in bf16; called where that is not known yet.
        """
        return resolve(self.requested, self.device) or self._measured(stage, use, model, measure)

    def _measured(self, stage: str, use: str, model: str, measure: Callable[[], float]) -> Precision:
        known = read_record(self.measured) or {}
        key = f"{use} with {model[:16]} on {machine()}, code {CODE}"
        if key not in known:
            known[key] = round(measure(), 3)
            write_json(self.measured, known)
        precision = faster(known[key])
        console.stage(stage, f"{use} in {precision}: bf16 is {known[key]:.1f} times as fast as fp32 on this CPU")
        return precision


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Return the context in which a model on `device` computes in `precision`.

    Cast weights are kept while it lasts, whatever another library has told torch about that.
    """
    half = HALVES.get(precision)
    return torch.autocast(device.type, dtype=half, enabled=half is not None, cache_enabled=True)


def resolve(requested: Precision | Literal["auto"], device: torch.device) -> Precision | None:
    """Return the precision that `requested` (auto, fp32, bf16, fp16) means on `device`.

    None: the device is a CPU that computes bf16 natively, and a measurement of the model decides. On a GPU auto is what
    the launcher was told (`accelerate launch --mixed_precision`), else bf16 where the GPU has it. Raises RecipeError
    for fp16 without a CUDA GPU.
    """
    if requested == "auto":
        return _automatic(device)
    if requested == "fp16" and device.type != "cuda":
        raise RecipeError("train.precision: fp16 needs a CUDA GPU, and there is none here; take auto")
    if requested == "bf16" and device.type == "cpu" and not has_native_bf16():
        console.warn("train", "train.precision: this CPU emulates bf16, which is slower than fp32; auto is faster")
    return requested


def _automatic(device: torch.device) -> Precision | None:
    if device.type == "cpu":
        return None if has_native_bf16() else "fp32"
    if device.type != "cuda":
        return "fp32"
    best = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", best)
    return "bf16" if launched == "bf16" else "fp16" if launched == "fp16" else "fp32"


def has_native_bf16() -> bool:
    """Return whether this CPU has units for bf16 matrix products; emulation does not count."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) is True for name in CPU_BF16)


def bf16_speedup(compute: Callable[[], object], device: torch.device) -> float:
    """Return how many times as fast `compute` is in bf16 as in fp32: the ratio of medians of interleaved rounds.

    Takes a few seconds; the first round of each only warms up.
    """
    seconds: dict[Precision, list[float]] = {"fp32": [], "bf16": []}
    started = time.perf_counter()
    rounds = 0
    while rounds <= MEASURED_ROUNDS or time.perf_counter() - started < MEASURED_SECONDS:
        for precision, taken in seconds.items():
            begun = time.perf_counter()
            with autocast(device, precision):
                compute()
            taken.append(time.perf_counter() - begun)
        rounds += 1
    full, half = (median(taken[1:]) for taken in seconds.values())
    return full / half


def faster(speedup: float) -> Precision:
    """Return the precision that a measured speedup of bf16 speaks for."""
    return "bf16" if speedup >= WORTHWHILE else "fp32"


def machine() -> str:
    """Return a name for what a measured speedup depends on beside the model: processor, threads, torch."""
    processor = torch.cpu.get_capabilities().get("cpu_name", "CPU")
    units = "+".join(name for name in CPU_BF16 if torch.cpu.get_capabilities().get(name) is True)
    return f"{processor} ({units}), {torch.get_num_threads()} threads, torch {torch.__version__}"


class Float32Linear(nn.Linear):
    """A linear layer that computes in float32 under autocast too: bf16 logits tie where float32 ones do not.

    With a standard deviation of 7 two of the ten best tie in 16 % of lists of 50 when logits are rounded to bf16.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return logits (..., 1) float32 of states (..., width)."""
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(input.to(self.weight.dtype))


def keep_logits_exact(model: nn.Module) -> None:
    """Let the layer that gives the logit compute in float32."""
    for module in model.modules():
        if type(module) is nn.Linear and module.out_features == 1:
            module.__class__ = Float32Linear


def has_flash_attention(device: torch.device, precision: Precision) -> bool:
    """Return whether torch's kernel for sequences of varying length runs: NVIDIA from Ampere on, half precision."""
    if device.type != "cuda" or torch.version.hip or precision not in HALVES:
        return False
    if not torch.backends.cuda.is_flash_attention_available():  # a build without it
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)


def best_device() -> str:
    """Return the device that models go to unless another is asked for."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
