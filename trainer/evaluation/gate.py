"""The release gate: whether the model that leaves is shown to be better than what the user had, on dev in float32.

It is judged in both ways of use: alone, and fused with first-stage scores. What the user had is the tuned first stage,
and the base where that ranks already; a way of use is better only where it is better than both.

Dev also chose what leaves (how far to go from the fitted to the trained weights, the weight of the first stage), which
flatters it. So the bootstrap over dev queries repeats the choice in each resample, and takes the whole of dev for the
truth there: how much a resample flatters its own choice is how much dev flatters ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
from scipy.special import ndtri, stdtrit

MARGIN = 0.01  # a loss that is too small to matter
LEVEL = 0.99  # one-sided; at .90 a model worse by the margin passes more than once in ten (docs/results.md)
RESAMPLES = 4000
BLOCK = 1 << 20  # counts drawn at once

Judged = Literal["better", "worse", "cannot tell"]
BETTER, WORSE, UNCLEAR = "better", "worse", "cannot tell"
ONLY_FUSED = "better only with first-stage scores"
NAMES = {"first_stage": "the first stage", "base": "the base model"}
Choose = Callable[[np.ndarray, np.ndarray], np.ndarray]


class Finding(NamedTuple):
    """One way of use beside the opponent over which it is least ahead: means and bounds of the first metric."""

    judged: Judged
    against: str
    difference: float  # mean over dev queries, less what the choice flatters it
    low: float  # lower end of its one-sided interval


def best_mean(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the place of the best mean (resamples,) of values (alternatives, queries), the first of equal ones."""
    return np.argmax(counts @ values.T, axis=1)


@dataclass(frozen=True)
class Way:
    """One way of use: each dev query's value under all that dev chose from, and how it chose.

    `choose` takes values (alternatives, queries) and counts (resamples, queries), and returns places (resamples,).
    """

    values: np.ndarray
    chosen: int = 0
    choose: Choose = best_mean


def judge(way: Way, opponents: Mapping[str, np.ndarray], seed: int) -> Finding:
    """Return the finding over the opponent, of {name: (queries,) values}, that leaves the least."""
    queries = way.values.shape[1]
    found = [compare(way, name, values, resamples(queries, seed)) for name, values in opponents.items()]
    order: list[Judged] = [WORSE, UNCLEAR, BETTER]
    return min(found, key=lambda one: (order.index(one.judged), one.low))


def compare(
    way: Way, against: str, opponent: np.ndarray, counts: Iterable[np.ndarray], level: float = LEVEL
) -> Finding:
    """Judge one way of use beside one opponent's values (queries,); `counts` are blocks of (resamples, queries)."""
    gains = way.values - opponent
    means = gains.mean(axis=1)
    errors, flattery = [], []
    for block in counts:
        error = block @ gains.T / gains.shape[1] - means
        chosen = np.take_along_axis(error, way.choose(way.values, block)[:, None], axis=1)[:, 0]
        errors.append(chosen)
        # The error of what was chosen on all of dev has mean 0; taking it off leaves less noise.
        flattery.append(chosen - error[:, way.chosen])
    difference = float(means[way.chosen] - max(0.0, np.concatenate(flattery).mean()))
    most = np.quantile(np.concatenate(errors), level) * _widened(gains.shape[1], level)
    low = float(means[way.chosen] - most) if gains.shape[1] > 1 else -1.0  # a single query bounds nothing
    return Finding(judged(difference, low), against, difference, low)


def judged(difference: float, low: float) -> Judged:
    """Return what a difference and the lower end of its interval show.

    Better: above 0, and a loss of .01 is ruled out. Worse: not above 0.
    """
    if difference <= 0:
        return WORSE
    return BETTER if low > -MARGIN else UNCLEAR


def _widened(queries: int, level: float) -> float:
    """Return by how much the bootstrap's interval is too narrow for so few queries (Hesterberg 2015, section 5.3).

    It knows neither that the spread is estimated (Student's t) nor that a sample's own is too small.
    """
    freedom = max(1, queries - 1)
    return float(stdtrit(freedom, level) / ndtri(level) * math.sqrt(queries / freedom))


def resamples(queries: int, seed: int) -> Iterator[np.ndarray]:
    """Yield how often each query is drawn: (resamples, queries) blocks."""
    rng = np.random.default_rng(seed)
    rows = max(1, BLOCK // queries)
    for start in range(0, RESAMPLES, rows):
        yield rng.multinomial(queries, np.full(queries, 1 / queries), size=min(rows, RESAMPLES - start)).astype(float)


@dataclass(frozen=True, kw_only=True)
class Release:
    """The model that leaves: which system it is, what dev shows of it, and the first stage's weight in the fusion."""

    verdict: str = ""
    shipped: str = "tuned"
    ways: dict[str, Finding] = field(default_factory=dict)  # alone, fused
    first_stage_weight: float = 0.0

    @property
    def sentence(self) -> str:
        """The verdict with the differences on dev that it rests on."""
        said = [
            f"{way} {one.difference:+.4f} against {NAMES[one.against]} (lower bound {one.low:+.4f})"
            for way, one in self.ways.items()
        ]
        return f"{self.verdict}: on dev, {', '.join(said)}"


def verdict_of(alone: Finding, fused: Finding) -> str:
    """Return the verdict on a model that is used in both ways."""
    if alone.judged == BETTER:
        return BETTER
    if fused.judged == BETTER:
        return ONLY_FUSED
    return WORSE if alone.judged == fused.judged == WORSE else UNCLEAR


def leaves(verdict: str) -> bool:
    """Whether a model of this verdict may leave the machine without being forced."""
    return verdict in (BETTER, ONLY_FUSED)


def advice(verdict: str) -> str:
    """Return what to do about a model that may not leave."""
    if verdict == WORSE:
        return (
            "so the model is not exported; look at mine/report.md, try more or better judgements or another base, or "
            "take it all the same with --force"
        )
    return (
        "so the model is exported here, marked, and not pushed; more judged dev queries would tell, or take it all the "
        "same with --force"
    )
