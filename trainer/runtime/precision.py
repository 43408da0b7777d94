"""Devices and number formats: where a model computes, and in which precision.

Weights, optimizer states, losses and scores are float32 everywhere. `bf16` and `fp16` mean autocast: matrix products
and attention in half precision, with the interaction head's cosines in float32 (interaction.py).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Literal, cast

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from trainer.errors import MachineError, RecipeError, one_line
from trainer.runtime import console, processes
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

    Measured speedups are kept in the file `measured`, by machine and model, so that a model is measured once.
    """

    requested: Precision | Literal["auto"]
    accelerator: Accelerator
    measured: Path

    def of(self, stage: str, use: str, model: str, measure: Callable[[], float]) -> Precision:
        """Return the precision of the model with this fingerprint in a use (scoring, training), on all processes alike.

        `measure` loads the model and returns how many times as fast it is in bf16; only the main process calls it.
        """
        precision = resolve(self.requested, self.accelerator.device)
        if precision is None:
            chosen = [self._measured(stage, use, model, measure) if processes.is_main() else None]
            precision = cast(Precision, broadcast_object_list(chosen)[0])
        return precision

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


@contextmanager
def without_cudnn_attention(device: torch.device) -> Iterator[None]:
    """Keep torch from cuDNN's attention on a GPU, so that scores are the same whether Accelerate was started or not.

    A run turns it off for the whole process, for the reasons in `start_accelerator`.
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

    None: the device is a CPU that computes bf16 natively, and a measurement of the model decides. On a GPU auto is the
    precision of `accelerate launch --mixed_precision`, else bf16 where the GPU has it. Raises RecipeError for fp16
    without a CUDA GPU.
    """
    if requested == "auto":
        launched = os.environ.get("ACCELERATE_MIXED_PRECISION") if device.type == "cuda" else None
        return fastest(device) if launched is None else launched if launched in ("bf16", "fp16") else "fp32"
    if requested == "fp16" and device.type != "cuda":
        raise RecipeError("train.precision: fp16 needs a CUDA GPU, and there is none here; take auto")
    if requested == "bf16" and device.type == "cpu" and not has_native_bf16():
        console.warn("train", "train.precision: this CPU emulates bf16, which is slower than fp32; auto is faster")
    return requested


def fastest(device: torch.device) -> Precision | None:
    """Return the fastest precision on `device`; None where a measurement of the model decides, on a CPU with bf16."""
    if device.type == "cpu":
        return None if has_native_bf16() else "fp32"
    if device.type != "cuda":
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"


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


def usable_device(name: str | torch.device | None, precision: str | None = None) -> torch.device:
    """Return the device of this name, or the best one here for None.

    Raises ValueError for a name that torch does not know, and MachineError where this machine does not have the device,
    or the device not the precision.
    """
    try:
        device = torch.device(name or best_device())
    except (RuntimeError, TypeError):
        raise ValueError(f"device must be one that torch knows, such as cpu, cuda or cuda:1, not {name!r}") from None
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = one_line(str(error).partition("\n")[0])[:200]
        raise MachineError(f"device: {device} cannot be used on this machine ({reason}); take cpu, or none") from None
    if precision == "fp16" and device.type != "cuda":
        raise MachineError(f"precision: fp16 needs a CUDA GPU, and the device is {device}; take fp32 or auto")
    return device
