"""What scripts/gpu_check computes on, and what the chip can do at most."""

from __future__ import annotations

import sys
import time

NO_GPU = 3  # exit code of a part that should have had one


def device_of(dry: bool) -> str:
    """Where the part computes; ends its process where that should be a GPU and there is none."""
    import torch

    if not dry and not torch.cuda.is_available():
        sys.exit(NO_GPU)
    return "cpu" if dry else "cuda"


def chip_peak(dry: bool) -> float:
    """TFLOP/s that shares are of: the maker's, or what a matrix product reaches where that is not known."""
    device = device_of(dry)
    return published_tflops(device) or measured_tflops(device)


def measured_tflops(device: str) -> float:
    """TFLOP/s of a square matrix product of random numbers, in bf16 on a GPU."""
    import torch

    size, dtype = (8192, torch.bfloat16) if device == "cuda" else (256, torch.float32)
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    for _ in range(3):
        torch.matmul(left, right)
    synchronize(device)
    started = time.perf_counter()
    for _ in range(10):
        torch.matmul(left, right)
    synchronize(device)
    return 10 * 2 * size**3 / (time.perf_counter() - started) / 1e12


def published_tflops(device: str) -> float | None:
    """What the maker says of the chip, where it is known."""
    import torch
    from bench_sides import peak_tflops

    return peak_tflops(torch.cuda.get_device_name()) if device == "cuda" else None


def synchronize(device: str) -> None:
    """Wait until the GPU has done all that it was asked to."""
    import torch

    if device == "cuda":
        torch.cuda.synchronize()
