"""Standardised scores, which are comparable between systems."""

from __future__ import annotations

import numpy as np


def standardised(numbers: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return each row of `numbers` with mean 0 and variance 1 over `mask`, and 0 outside of it.

    All arrays are (requests, documents), the result is float64. Rows of equal numbers give zeros. Numbers are divided
    by the largest absolute value first, so that squares do not overflow.
    """
    known = np.where(mask, numbers, 0.0).astype(np.float64)
    largest = np.abs(known).max(axis=1, keepdims=True, initial=0.0)
    known = known / np.where(largest > 0, largest, 1.0)
    count = np.maximum(mask.sum(axis=1, keepdims=True), 1)
    centred = np.where(mask, known - known.sum(axis=1, keepdims=True) / count, 0.0)
    deviation = np.sqrt((centred**2).sum(axis=1, keepdims=True) / count)
    minimum, maximum = (
        pick(np.where(mask, known, edge), axis=1, keepdims=True, initial=edge)
        for pick, edge in ((np.min, np.inf), (np.max, -np.inf))
    )
    return np.where(maximum > minimum, centred / np.where(deviation > 0, deviation, 1.0), 0.0)
