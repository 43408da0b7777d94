"""Trainings with several seeds: the mean of each query's values over the seeds, and their spread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import NamedTuple

import numpy as np

SYSTEM = "seeds"  # name of the averaged system in the table
Values = Mapping[str, Mapping[str, float]]  # {metric: {query id: value}}


class SeedScores(NamedTuple):
    """The scores (queries, depth) of the best model of one seed's training on dev and test."""

    seed: int
    exported: bool
    dev: np.ndarray
    dev_mean: float  # in the metric that chooses
    test: np.ndarray

    @property
    def name(self) -> str:
        """Name of the TREC run."""
        return f"seed-{self.seed}"


class SeedResult(NamedTuple):
    """The means of one seed's model; the field names are keys of results.json."""

    seed: int
    exported: bool
    dev: float  # in the first metric
    means: dict[str, float]  # on the split of the results, by metric


def average(by_seed: Sequence[Values]) -> dict[str, dict[str, float]]:
    """Return each query's mean over the seeds.

    Tests and intervals of these values are over queries: one query with three seeds is one observation, not three.
    """
    first = by_seed[0]
    return {
        metric: {query: fmean(values[metric][query] for values in by_seed) for query in queries}
        for metric, queries in first.items()
    }


def results_of(seeds: Sequence[SeedScores], by_seed: Sequence[Values]) -> tuple[SeedResult, ...]:
    """Return the means of each seed's values."""
    return tuple(
        SeedResult(one.seed, one.exported, one.dev_mean, {name: fmean(of.values()) for name, of in values.items()})
        for one, values in zip(seeds, by_seed, strict=True)
    )


def spread(results: Sequence[SeedResult], metric: str) -> tuple[float, float]:
    """Return the mean over at least two seeds, and their standard deviation (n - 1)."""
    values = [result.means[metric] for result in results]
    return fmean(values), stdev(values)


def describe_seeds(results: Sequence[SeedResult], metric: str) -> str:
    """Return the figures of all seeds in a sentence."""
    middle, deviation = spread(results, metric)
    exported = next(result.seed for result in results if result.exported)
    each = ", ".join(f"seed {one.seed} {one.means[metric]:.4f} (dev {one.dev:.4f})" for one in results)
    return (
        f"{len(results)} trainings: {metric} {each}; mean {middle:.4f}, standard deviation {deviation:.4f}; "
        f"seed {exported} was the best on dev"
    )
