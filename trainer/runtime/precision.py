"""The device and the precision (number format) of a model's computations.

Weights, optimizer states, losses and scores are float32 everywhere. `bf16` and `fp16` mean autocast: matrix products
and attention in half precision, with the interaction head's cosines in float32 (interaction.py).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from trainer.errors import MachineError, RecipeError, one_line
from trainer.runtime import console
from trainer.runtime.run_folder import read_record, write_json

Name = TypeVar("Name", bound=str)
Precision = Literal["fp32", "bf16", "fp16"]
_COMPARED: tuple[Precision, ...] = ("fp32", "bf16")
HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}
# Names in torch.cpu.get_capabilities() of CPU units for bf16 matrix products: Intel and AMD, then ARM.
CPU_BF16 = ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16")
# Smallest speedup for which bf16 is chosen: less saves little, and beside other work the measurement is off by a third.
MIN_SPEEDUP = 1.25
CODE_VERSION = 4  # of the models' forward and backward passes; raise it when earlier measurements no longer hold
MIN_SECONDS = 1.0  # of one measurement
MIN_ROUNDS = 3  # of one measurement, after the round that warms up


@dataclass(frozen=True)
class Precisions:
    """The precision of each model of a run: the recipe's, or the faster one on this machine.

    Measured speedups are cached in the file `measured` by machine and model, so that each model is measured once. With
    several processes only the main one calls `of`, since other machines may have other units or measure other speedups.
    """

    requested: Precision | Literal["auto"]
    device: torch.device
    measured: Path

    def of(self, stage: str, use: str, model: str, measure: Callable[[], float]) -> Precision:
        """Return the precision for the model with the fingerprint `model` in a use (scoring, training).

        `measure` loads the model and returns its speedup in bf16 over fp32; it is called if that is not known yet.
        """
        return resolve(self.requested, self.device) or self._measured(stage, use, model, measure)

    def _measured(self, stage: str, use: str, model: str, measure: Callable[[], float]) -> Precision:
        speedups = read_record(self.measured) or {}
        key = f"{use} with {model[:16]} on {machine()}, code {CODE_VERSION}"
        if key not in speedups:
            speedups[key] = round(measure(), 3)
            write_json(self.measured, speedups)
        precision = faster(speedups[key])
        console.stage(stage, f"{use} in {precision}: bf16 is {speedups[key]:.1f} times as fast as fp32 on this CPU")
        return precision


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Return the autocast context for a model on `device` that computes in `precision`.

    Cast weights are cached inside it, even if another library has turned torch's cache off.
    """
    half = HALVES.get(precision)
    return torch.autocast(device.type, dtype=half, enabled=half is not None, cache_enabled=True)


@contextmanager
def without_cudnn_attention(device: torch.device) -> Iterator[None]:
    """Disable cuDNN's attention on a GPU within the context, so that scores do not depend on whether Accelerate runs.

    A run disables it for the complete process, for the reasons in `start_accelerator`.
    """
    if device.type != "cuda":
        yield
        return
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def resolve(requested: Precision | Literal["auto"], device: torch.device) -> Precision | None:
    """Return the precision that `requested` (auto, fp32, bf16, fp16) means on `device`.

    On a GPU auto is the launcher's setting (`accelerate launch --mixed_precision`), or bf16 if the GPU supports it.
    On a CPU with native bf16 auto returns None: the precision then depends on a measurement of the model. Raises
    RecipeError for fp16 without a CUDA GPU.
    """
    if requested == "auto":
        launched = os.environ.get("ACCELERATE_MIXED_PRECISION") if device.type == "cuda" else None
        return fastest(device) if launched is None else launched if launched in ("bf16", "fp16") else "fp32"
    if requested == "fp16" and device.type != "cuda":
        raise RecipeError("train.precision: fp16 needs a CUDA GPU, and there is none here; set it to auto")
    if requested == "bf16" and device.type == "cpu" and not has_native_bf16():
        console.warn("train", "train.precision: this CPU emulates bf16, which is slower than fp32; auto is faster")
    return requested


def fastest(device: torch.device) -> Precision | None:
    """Return the fastest precision on `device`; None if a measurement of the model decides, on a CPU with bf16."""
    if device.type == "cpu":
        return None if has_native_bf16() else "fp32"
    if device.type != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"


def has_native_bf16() -> bool:
    """Return True if this CPU has units for bf16 matrix products; emulation does not count."""
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) is True for name in CPU_BF16)


def bf16_speedup(compute: Callable[[], object], within: Callable[[Precision], AbstractContextManager[Any]]) -> float:
    """Return the speedup of `compute` in bf16 over fp32, measured in a few seconds, within the context of each."""

    def timed(precision: Precision) -> None:
        with within(precision):
            compute()

    seconds = median_seconds({name: lambda name=name: timed(name) for name in _COMPARED})
    return seconds["fp32"] / seconds["bf16"]


def median_seconds(computes: Mapping[Name, Callable[[], object]]) -> dict[Name, float]:
    """Return the median seconds of each function, called in interleaved rounds of which the first only warms up."""
    seconds: dict[Name, list[float]] = {name: [] for name in computes}
    started = time.perf_counter()
    rounds = 0
    while rounds <= MIN_ROUNDS or time.perf_counter() - started < MIN_SECONDS:
        for name, compute in computes.items():
            begun = time.perf_counter()
            compute()
            seconds[name].append(time.perf_counter() - begun)
        rounds += 1
    return {name: median(taken[1:]) for name, taken in seconds.items()}


def faster(speedup: float) -> Precision:
    """Return the precision to use, given the speedup of bf16 over fp32."""
    return "bf16" if speedup >= MIN_SPEEDUP else "fp32"


def machine() -> str:
    """Return the part of a measurement's key that names the machine: processor, threads, version of torch."""
    processor = torch.cpu.get_capabilities().get("cpu_name", "CPU")
    units = "+".join(name for name in CPU_BF16 if torch.cpu.get_capabilities().get(name) is True)
    return f"{processor} ({units}), {torch.get_num_threads()} threads, torch {torch.__version__}"


class Float32Linear(nn.Linear):
    """A linear layer that computes in float32 also under autocast, since logits rounded to bf16 cause ties.

    With logits of standard deviation 7, two of the ten best tie in 16 % of lists of 50 after rounding to bf16.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return the float32 logits (..., 1) of hidden states (..., width)."""
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(input.to(self.weight.dtype))


def keep_logits_exact(model: nn.Module) -> None:
    """Make the layer that computes the logit use float32."""
    for module in model.modules():
        if type(module) is nn.Linear and module.out_features == 1:
            module.__class__ = Float32Linear


def has_flash_attention(device: torch.device, precision: Precision) -> bool:
    """Return True if torch's variable-length attention kernel runs here: half precision, NVIDIA Ampere or newer."""
    if device.type != "cuda" or torch.version.hip or precision not in HALVES:
        return False
    if not torch.backends.cuda.is_flash_attention_available():  # torch was built without it
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)


def best_device() -> str:
    """Return the default device for models."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def usable_device(name: str | torch.device | None, precision: str | None = None) -> torch.device:
    """Return the device of this name, or the best one here for None.

    Raises ValueError for a name that torch does not know, and MachineError if this machine does not have the device or
    the device does not support the precision.
    """
    try:
        device = torch.device(name or best_device())
    except (RuntimeError, TypeError):
        raise ValueError(f"device must be one that torch knows, such as cpu, cuda or cuda:1, not {name!r}") from None
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = one_line(str(error).partition("\n")[0])[:200]
        raise MachineError(
            f"device: {device} cannot be used on this machine ({reason}); use cpu, or leave the argument out"
        ) from None
    if precision == "fp16" and device.type != "cuda":
        raise MachineError(f"precision: fp16 needs a CUDA GPU, and the device is {device}; use fp32 or auto")
    return device
