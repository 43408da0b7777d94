"""The memory of training: weights, gradients, optimizer and activations, against what the device has."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.forecast.work import FLOAT32, Work
from trainer.model_files import checks, references

if TYPE_CHECKING:
    from trainer.recipe import Recipe

ADAMW = 2  # numbers that the optimizer keeps for each trained weight
LIBRARIES = {"cpu": 1.3e9, "cuda": 0.6e9}  # bytes: Python with its libraries; a CUDA context
FEWEST_TOKENS = 512  # of train.tokens_per_pass
MARGIN = 0.9  # share of the memory that may be planned: allocators lose some
DRIVERS = (Path("/proc/driver/nvidia"), Path("/dev/dxg"))  # the second one under WSL
CGROUP = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True)
class Memory:
    """Bytes that training needs on a device, by part, and the bytes that the device has."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    libraries: float
    device: str
    has: float

    @property
    def total(self) -> float:
        """All bytes that are needed."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.libraries

    @property
    def fits(self) -> bool:
        """True if the device has enough."""
        return self.total <= MARGIN * self.has

    @property
    def sentence(self) -> str:
        """The forecast in words."""
        parts = ("weights", "gradients", "optimizer", "activations", "libraries")
        named = ", ".join(f"{name} {gigabytes(getattr(self, name))}" for name in parts)
        return (
            f"training needs about {gigabytes(self.total)} of memory ({named}); {self.device} has {gigabytes(self.has)}"
        )


def memory_before_loading(recipe: Recipe) -> Memory:
    """Return the memory without activations, from the headers of the base's files, and all weights trained."""
    shapes = checks.read_headers(references.locate(recipe.reranker.model))
    size = FLOAT32 * sum(math.prod(shape) for shape in shapes.values())
    trained = 0 if recipe.train.frozen_layers else size  # frozen layers are known once the model is loaded
    device, has = device_memory()
    return Memory(size, trained, ADAMW * trained, 0.0, LIBRARIES[device], device, has)


def memory_of_training(work: Work) -> Memory:
    """Return the memory that training the recipe's base needs."""
    speed, device_has = work.reranker, device_memory()
    device, has = device_has
    kept = speed.activations * tokens_of_a_pass(work, device)
    trained = FLOAT32 * speed.trained
    return Memory(work.weights(speed), trained, ADAMW * trained, kept, LIBRARIES[device], device, has)


def tokens_of_a_pass(work: Work, device: str) -> float:
    """Return the tokens whose activations are in memory at a time: at most train.tokens_per_pass.

    A group above that is computed bucket by bucket, and a step below it is a single pass.
    """
    section = work.recipe.train
    group = work.group_size * work.reranker.tokens
    if group > section.tokens_per_pass:
        return min(section.tokens_per_pass, 4096) if device == "cpu" else section.tokens_per_pass
    return min(section.tokens_per_pass, section.queries_per_step * group)


def remedies(memory: Memory, work: Work) -> Iterator[str]:
    """Yield the recipe's keys that would make the training fit, the least costly first."""
    section, speed = work.recipe.train, work.reranker
    fixed = memory.total - memory.activations
    left = MARGIN * memory.has - fixed
    per_token = speed.activations
    if per_token and (tokens := left / per_token) >= FEWEST_TOKENS:
        yield f"train.tokens_per_pass={1 << int(min(tokens, section.tokens_per_pass // 2)).bit_length() - 1}"
    if left > 0 and not section.gradient_checkpointing:
        yield "train.gradient_checkpointing=true"
    if left > 0:
        yield "a lower reranker.max_length"
    if not section.frozen_layers:
        yield "train.frozen_layers (two thirds of the layers)"
    yield "a smaller reranker.model"


def device_memory() -> tuple[str, float]:
    """Return the device on which training runs (cpu or cuda), and its bytes of memory."""
    if any(path.exists() for path in DRIVERS):  # else importing torch, which takes seconds, would tell nothing
        import torch

        if torch.cuda.is_available():
            return "cuda", float(torch.cuda.get_device_properties(0).total_memory)
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with suppress(OSError, ValueError):  # no such file, or `max`
        pages = min(pages, int(CGROUP.read_text(encoding="ascii")))
    return "cpu", float(pages)


def gigabytes(size: float) -> str:
    """Return a number of bytes in GB."""
    return f"{size / 1e9:.1f} GB"
