"""Scores of different systems on one scale."""

from __future__ import annotations

import numpy as np


def standardised(numbers: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Return each row's numbers (requests, documents) with mean 0 and variance 1 over what was found, 0 elsewhere.

    Rows of equal numbers give zeros. Numbers are divided by the largest first, so that none overflows.
    """
    known = np.where(found, numbers, 0.0).astype(np.float64)
    largest = np.abs(known).max(axis=1, keepdims=True, initial=0.0)
    known = known / np.where(largest > 0, largest, 1.0)
    count = np.maximum(found.sum(axis=1, keepdims=True), 1)
    centred = np.where(found, known - known.sum(axis=1, keepdims=True) / count, 0.0)
    spread = np.sqrt((centred**2).sum(axis=1, keepdims=True) / count)
    lowest, highest = (
        pick(np.where(found, known, edge), axis=1, keepdims=True, initial=edge)
        for pick, edge in ((np.min, np.inf), (np.max, -np.inf))
    )
    return np.where(highest > lowest, centred / np.where(spread > 0, spread, 1.0), 0.0)
