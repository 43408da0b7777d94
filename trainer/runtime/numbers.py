"""Small facts about numbers that several rooms need."""

from __future__ import annotations

import math
from typing import Any

import numpy as np


def is_finite_number(value: Any) -> bool:
    """Return whether a value from a JSON file is a finite number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def evenly(count: int, most: int) -> np.ndarray:
    """Return at most `most` of the indices below `count`, int64, spread evenly from the first to the last."""
    return np.linspace(0, count - 1, min(count, most)).round().astype(int)
