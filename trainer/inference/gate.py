"""The quality gate of a format: what may differ from the float32 model before the format is left out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import kendalltau

TOLERANCE = 1e-3  # largest difference of float32 logits that rounding explains; the logits reach about 30
LEAST_TAU = 0.9  # smallest Kendall's tau in fewer bits
MOST_DEV = 0.005  # largest difference of the dev metric in fewer bits
FLOAT32_SHARES = (0.0, 0.25, 0.5)  # of the products of int8 in float32: the first one that passes is taken


@dataclass(frozen=True)
class Quality:
    """A format's scores compared with the float32 model's, over the same pairs.

    `dev` and `dev_float32` are the means of the dev metric; both None if they were not measured.
    """

    difference: float  # largest absolute difference
    tau: float  # Kendall's tau over the real pairs
    size: int  # bytes of the files
    dev: float | None = None
    dev_float32: float | None = None
    float32_share: float = 0.0  # of the products, in fewer bits

    @classmethod
    def of(
        cls,
        scores: np.ndarray,
        expected: np.ndarray,
        size: int,
        real: int | None = None,
        dev: float | None = None,
        dev_float32: float | None = None,
        float32_share: float = 0.0,
    ) -> Quality:
        """Return the quality of scores (pairs,), where `expected` are the float32 model's.

        Kendall's tau is that of the first `real` pairs: made-up pairs of odd texts have no order worth keeping.
        """
        tau = kendalls_tau(expected[:real], scores[:real])
        return cls(largest_difference(scores, expected), tau, size, dev, dev_float32, float32_share)

    def fault(self, exact: bool) -> str:
        """Return why the format fails the gate, or an empty string; an `exact` one only differs by rounding."""
        if exact:
            return exact_fault(self.difference)
        faults = []
        if not self.tau >= LEAST_TAU:
            faults.append(f"Kendall's tau to the float32 scores is {self.tau:.3f}, less than {LEAST_TAU}")
        if self.dev is not None and self.dev_float32 is not None and not abs(self.dev - self.dev_float32) <= MOST_DEV:
            values = f"{self.dev:.4f} instead of {self.dev_float32:.4f}"
            faults.append(f"the dev metric is {values}, a difference of more than {MOST_DEV}")
        return "; ".join(faults)


def exact_fault(difference: float) -> str:
    """Return why a largest difference of float32 scores is too large, or an empty string."""
    if difference <= TOLERANCE:
        return ""
    return f"its scores differ by {difference:.1e}, more than the {TOLERANCE} of rounding errors"


def largest_difference(scores: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest absolute difference; two NaN count as equal, a NaN and a number as infinitely different."""
    differences = np.abs(scores - expected)
    differences[np.isnan(scores) & np.isnan(expected)] = 0.0
    return float(np.nan_to_num(differences, nan=np.inf).max())


def kendalls_tau(expected: np.ndarray, scores: np.ndarray) -> float:
    """Return Kendall's tau over the pairs with two numbers as scores; NaN for fewer than two such pairs."""
    known = ~(np.isnan(expected) | np.isnan(scores))
    if known.sum() < 2:
        return float("nan")
    result: Any = kendalltau(expected[known], scores[known])
    return float(result.statistic)
