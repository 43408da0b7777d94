"""This machine: its description, the devices that share the work, and its pace in work besides the models."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np

from trainer.runtime import processes

PACE_SECONDS = 0.11  # of `_plain_work` on one idle core of the machine on which the seconds of Work.plain were taken
PACE_ROUNDS = 8  # about a second, so that a busy machine's scheduler does not decide


def pace(clock: Callable[[], float] = time.perf_counter) -> float:
    """Return how many times as long plain Python takes here as on the machine of the constants, measured each time."""
    begun = clock()
    for _ in range(PACE_ROUNDS):
        _plain_work()
    return (clock() - begun) / PACE_ROUNDS / PACE_SECONDS


def devices() -> int:
    """Return the number of devices that share the work: GPUs; processes on one CPU share its cores."""
    if not processes.several():
        return 1
    from trainer.runtime.precision import best_device

    return processes.count() if best_device() == "cuda" else 1


def machine() -> str:
    """Return a description of this machine for the key of a measurement, without importing torch."""
    threads = os.environ.get("OMP_NUM_THREADS", "")
    gpus = sorted(path.name for path in Path("/proc/driver/nvidia/gpus").glob("*"))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "all")
    torch = version("torch")
    return f"{platform.machine()} {processor()} {os.cpu_count()} {threads} {gpus} {visible} torch {torch}"


def processor() -> str:
    """Return the processor's name as the system reports it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine() or "CPU"


def _plain_work() -> int:
    """Do a fixed piece of work of the kind that takes the time of a run besides its models: texts and arrays."""
    words = [f"{number * 7919 % 100003:06d}" for number in range(100_000)]
    counts = {word: len(word) for word in sorted(words)}
    array = np.random.default_rng(0).random(1_000_000)
    array.sort()
    return len(counts) + int(array[-1])
