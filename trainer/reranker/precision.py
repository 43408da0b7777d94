"""What models compute on and in: the best device here, half precision where it is used."""

from __future__ import annotations

import torch
from accelerate.state import AcceleratorState, is_initialized

HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}  # by Accelerate's names


def half_precision(device: torch.device) -> torch.dtype | None:
    """What models compute in: as Accelerate was told, or without it bf16 on GPUs that have it; None: fp32."""
    if is_initialized():
        return HALVES.get(AcceleratorState().mixed_precision)
    return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else None


def autocast(device: torch.device) -> torch.autocast:
    """Half precision where it is used on the device."""
    half = half_precision(device)
    return torch.autocast(device.type, dtype=half, enabled=half is not None)


def has_flash_attention(device: torch.device) -> bool:
    """Whether torch's kernel for sequences of varying length runs: NVIDIA from Ampere on, in half precision."""
    if device.type != "cuda" or torch.version.hip or half_precision(device) is None:
        return False
    if not torch.backends.cuda.is_flash_attention_available():  # a build without it
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)


def best_device() -> str:
    """Where models go."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
