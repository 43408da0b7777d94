"""How activations and matrices are rounded to 8-bit integers, such that their products lose little.

A matrix has a scale for each column; activations have one for each token and each group of inputs, so that a token with
large numbers costs the others nothing, and the scores of a pair do not depend on its batch. Before, the factors of
SmoothQuant (arXiv 2211.10438) move channels with large activations into the weights: sqrt(largest activation / largest
weight).

CPUs without VNNI add the products of two neighbouring inputs in 16 bits: 255 * (w1 + w2) < 2^15 must hold, or a file
that passed its gate on one CPU would give wrong scores on another. So the scale of a column is such that neighbouring
weights of one sign sum to 128 at most, which costs less than the 7 bits that would do as well.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LEVELS = 127  # largest quantised number of either sign
LARGEST_SUM = 128  # of neighbouring weights of one sign
SMALLEST_GROUP, LARGEST_GROUP = 64, 384  # inputs that share the scale of a token
MIDDLE, LARGEST = 128, 255  # of uint8
TINY = 1e-30  # smallest scale, for tokens, columns and rows of zeros
LEAST_SHARE = 0.01  # of the largest channel: smaller activations or weights count as this much in the factors


@dataclass
class Activations:
    """What a graph computed in some pairs: the largest absolute number (inputs,) of each channel, and some tokens.

    `sampled` is (tokens, inputs) float32.
    """

    largest: np.ndarray
    sampled: np.ndarray


class Rounding:
    """How activations are rounded that are multiplied by a matrix (inputs, outputs) float32.

    `factors` (inputs,) divide the activations and multiply the rows of the matrix, `groups` is the number of groups of
    inputs, and `zero` the uint8 number that stands for 0.
    """

    def __init__(self, activations: Activations, matrix: np.ndarray) -> None:
        self.factors = smoothing(activations.largest, matrix)
        self.groups = groups(len(matrix))
        smooth = self._smooth(activations.sampled)
        self.zero = zero_point(smooth.min(axis=2), smooth.max(axis=2))

    def parts(self, matrix: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return the matrix of each group of inputs, by the factors, as int8 and with its columns' scales."""
        return [rounded(part) for part in np.split(matrix * self.factors[:, None], self.groups)]

    def error(self, rows: np.ndarray, matrix: np.ndarray) -> float:
        """Return the error of the product of activations (tokens, inputs) with the matrix, relative to its size."""
        smooth = self._smooth(rows)
        above, below = smooth.max(axis=2, keepdims=True), smooth.min(axis=2, keepdims=True)
        step = np.maximum(np.maximum(above / (LARGEST - self.zero), -below / self.zero), TINY)
        integers = np.clip(np.round(smooth / step) + self.zero, 0, LARGEST) - self.zero
        parts = [whole * scale for whole, scale in self.parts(matrix)]
        product, exact = np.einsum("tgi,gio->to", integers * step, np.stack(parts), optimize=True), rows @ matrix
        return float(np.linalg.norm(product - exact) / max(np.linalg.norm(exact), TINY))

    def _smooth(self, rows: np.ndarray) -> np.ndarray:
        """Return activations (tokens, inputs) divided by the factors, as (tokens, groups, inputs of a group)."""
        return (rows / self.factors).reshape(len(rows), self.groups, -1)


def smoothing(activations: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Return factors (inputs,) float32, with a geometric mean of 1, from the largest activation of each channel."""
    factors = np.sqrt(_at_least(activations) / _at_least(np.abs(matrix).max(axis=1)))
    return (factors / np.exp(np.log(factors).mean())).astype(np.float32)


def _at_least(values: np.ndarray) -> np.ndarray:
    largest = float(values.max())
    return np.maximum(values, LEAST_SHARE * largest) if largest > 0 else np.ones_like(values)


def groups(inputs: int) -> int:
    """Return into how many equal groups so many inputs are cut; 1 where they do not divide into groups of some size."""
    counts = range(1, max(1, inputs // SMALLEST_GROUP) + 1)
    return next((count for count in counts if inputs % count == 0 and inputs // count <= LARGEST_GROUP), 1)


def zero_point(smallest: np.ndarray, largest: np.ndarray) -> int:
    """Return the uint8 number for 0 that makes the steps small, given the smallest and largest numbers of each scale.

    Activations behind a GELU are hardly negative: with 128 they would have half of the levels.
    """
    found, least = MIDDLE, np.inf
    for zero in range(MIDDLE // 8, MIDDLE + 1):
        steps = np.maximum(np.maximum(largest, 0) / (LARGEST - zero), np.maximum(-smallest, 0) / zero)
        size = float(np.square(steps).sum())
        if size < least:
            found, least = zero, size
    return found


def rounded(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a matrix (inputs, outputs) as int8, and the scale (outputs,) float32 of each column."""
    even = np.vstack([matrix, np.zeros((len(matrix) % 2, matrix.shape[1]), matrix.dtype)])
    pairs = [np.maximum(part[::2], 0) + np.maximum(part[1::2], 0) for part in (even, -even)]
    sums = np.maximum(*(pair.max(axis=0) for pair in pairs)) / (LARGEST_SUM - 1)  # rounding may add 1 to a pair
    scale = np.maximum(np.maximum(np.abs(matrix).max(axis=0) / LEVELS, sums), TINY).astype(np.float32)
    return np.round(matrix / scale).astype(np.int8), scale
