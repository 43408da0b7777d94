"""The memory of training: weights, gradients, optimizer and activations, against what the device has."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.errors import MachineError
from trainer.forecast.work import FLOAT32, Work
from trainer.model_files import checks, references
from trainer.model_files.architectures import is_decoder
from trainer.model_files.decoders import LANGUAGE_HEADS
from trainer.runtime import processes

if TYPE_CHECKING:
    from trainer.recipe import Recipe

ADAMW = 2  # numbers that the optimizer keeps for each trained weight
LIBRARIES = {"cpu": 1.3e9, "cuda": 0.6e9}  # bytes: Python with its libraries; a CUDA context
# Bytes held by the allocator for each byte of activations; on a CPU glibc keeps freed blocks. In training a decoder of
# 37M weights they were 1.7, with LoRA 2.4. Without kept blocks (MALLOC_MMAP_THRESHOLD_=131072) training with LoRA took
# 657 MB besides the weights; 625 were predicted.
HELD = {"cpu": 2.0, "cuda": 1.0}
FEWEST_TOKENS = 512  # of train.tokens_per_pass
MARGIN = 0.9  # share of the memory that may be planned: allocators lose some
DRIVERS = (Path("/proc/driver/nvidia"), Path("/dev/dxg"))  # the second one under WSL
CGROUP = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True)
class Memory:
    """Bytes that training needs on a device, by part, and the bytes that the device has.

    `adapter` are the matrices of LoRA. `copies` are further weights in memory after the last step, without gradients,
    optimizer and activations, when dev chooses between the weights before and after training.
    """

    weights: float
    adapter: float
    gradients: float
    optimizer: float
    activations: float
    libraries: float
    copies: float
    device: str
    has: float

    @property
    def of_steps(self) -> float:
        """Bytes besides weights and libraries that a training step needs."""
        return self.adapter + self.gradients + self.optimizer + self.activations

    @property
    def total(self) -> float:
        """All bytes that are needed at a time."""
        return self.libraries + self.weights + max(self.of_steps, self.copies)

    @property
    def fits(self) -> bool:
        """True if the device has enough."""
        return self.total <= MARGIN * self.has

    @property
    def sentence(self) -> str:
        """The forecast in words."""
        parts = ["adapter", "gradients", "optimizer", "activations"] if self.of_steps >= self.copies else ["copies"]
        sizes = {name: getattr(self, name) for name in ("weights", *parts, "libraries")}
        named = ", ".join(f"{name} {gigabytes(size)}" for name, size in sizes.items() if size)
        return (
            f"training needs about {gigabytes(self.total)} of memory ({named}); {self.device} has {gigabytes(self.has)}"
        )


def require_memory(recipe: Recipe) -> None:
    """Raise MachineError if weights, gradients and optimizer of the base do not fit, which its files tell."""
    memory = memory_before_loading(recipe)
    if not memory.fits:
        raise MachineError(
            f"reranker.model: {recipe.reranker.model} is too large for this machine: {memory.sentence}; to make it "
            f"fit: {', or '.join(remedies_before_loading(recipe))}"
        )


def memory_before_loading(recipe: Recipe) -> Memory:
    """Return the memory without activations, from the headers of the base's files.

    Of frozen layers only the rest has gradients, which is known once the model is loaded; they count as none here.
    """
    section = recipe.train
    shapes = checks.read_headers(references.locate(recipe.reranker.model))
    shapes = {name: shape for name, shape in shapes.items() if name not in LANGUAGE_HEADS}  # a score row replaces it
    size = FLOAT32 * sum(math.prod(shape) for shape in shapes.values())
    adapter = FLOAT32 * adapter_numbers(shapes, section.adapter_rank) if section.adapter == "lora" else 0
    trained = adapter or (0 if section.frozen_layers else size)
    device, has = device_memory()
    copies = _copies(size, device)
    return Memory(size, adapter, trained, ADAMW * trained / _shards(), 0.0, LIBRARIES[device], copies, device, has)


def adapter_numbers(shapes: Mapping[str, Sequence[int]], rank: int) -> int:
    """Return the numbers in a LoRA adapter of all linear layers, from the shapes of the base's tensors."""
    sides = [sum(shape) for name, shape in shapes.items() if len(shape) == 2 and not checks.is_embedding(name)]
    return rank * sum(sides)


def memory_of_training(work: Work) -> Memory:
    """Return the memory that training the recipe's base needs."""
    speed = work.reranker
    device, has = device_memory()
    kept = HELD[device] * speed.activations * tokens_of_a_pass(work, device)
    trained, weights = FLOAT32 * speed.trained, work.weights(speed)
    adapter = trained if work.recipe.train.adapter == "lora" else 0.0
    copies = _copies(weights, device)
    return Memory(weights, adapter, trained, ADAMW * trained / _shards(), kept, LIBRARIES[device], copies, device, has)


def _copies(weights: float, device: str) -> float:
    """Return the bytes of the weights before and after training, which are in main memory also with a GPU."""
    return 2 * weights if device == "cpu" else 0.0


def _shards() -> int:
    """Return the number of devices that the optimizer's numbers are divided among, which is one without FSDP.

    During a step every device holds all weights and gradients (training/parallel.py).
    """
    return processes.count() if os.environ.get("ACCELERATE_USE_FSDP") == "true" else 1


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
    section, per_token = work.recipe.train, HELD[memory.device] * work.reranker.activations
    room = MARGIN * memory.has - memory.libraries - memory.weights
    left = room - (memory.of_steps - memory.activations)  # for activations
    if memory.copies <= room:
        if per_token and (tokens := left / per_token) >= FEWEST_TOKENS:
            yield f"train.tokens_per_pass={1 << int(min(tokens, section.tokens_per_pass // 2)).bit_length() - 1}"
        if left > 0 and not section.gradient_checkpointing:
            yield "train.gradient_checkpointing=true"
        if left > 0:
            yield "a lower reranker.max_length"
        yield from _fewer_trained(work.recipe)
    yield "a smaller reranker.model"


def remedies_before_loading(recipe: Recipe) -> Iterator[str]:
    """Yield the recipe's keys that would let a base fit whose weights, gradients and optimizer do not."""
    for key in _fewer_trained(recipe):
        change = {"adapter": "lora"} if "adapter" in key else {"frozen_layers": 1}
        fewer = recipe.model_copy(update={"train": recipe.train.model_copy(update=change)})
        if memory_before_loading(fewer).fits:
            yield key
    yield "a smaller reranker.model"


def _fewer_trained(recipe: Recipe) -> Iterator[str]:
    """Yield the keys with which fewer weights are trained."""
    config = references.read_config(references.locate(recipe.reranker.model))
    if recipe.train.adapter == "lora":
        return
    if is_decoder(config, references.architecture_of(config)):
        yield "train.adapter=lora"
    if not recipe.train.frozen_layers:
        yield "train.frozen_layers (two thirds of the layers)"


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
