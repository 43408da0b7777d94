"""The device of scripts/gpu_check, and its peak speed."""

from __future__ import annotations

import sys
import time

NO_GPU = 3  # exit code of a part that needs a GPU where there is none


def device_of(dry: bool) -> str:
    """Return the device of a part; exit where a GPU is needed and there is none."""
    import torch

    if not dry and not torch.cuda.is_available():
        sys.exit(NO_GPU)
    return "cpu" if dry else "cuda"


def chip_peak(dry: bool) -> float:
    """Return the device's peak TFLOP/s: the maker's, or that of a matrix product where it is not known."""
    device = device_of(dry)
    return published_tflops(device) or measured_tflops(device)


def measured_tflops(device: str) -> float:
    """Return the TFLOP/s of a square matrix product of random numbers, in bf16 on a GPU."""
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
    """Return the maker's peak TFLOP/s of the GPU; None where it is not known."""
    import torch
    from bench_sides import peak_tflops

    return peak_tflops(torch.cuda.get_device_name()) if device == "cuda" else None


def synchronize(device: str) -> None:
    """Wait until the GPU has finished all its work."""
    import torch

    if device == "cuda":
        torch.cuda.synchronize()
