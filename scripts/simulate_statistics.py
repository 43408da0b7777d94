"""Simulate how far intervals and p-values can be trusted: python scripts/simulate_statistics.py [--collections 1000].

Each simulated collection draws per-query values as nDCG@10 has them: many zeros and ones, the rest in between. Three
numbers for each number of queries: how often the 95 % interval of a mean covers the true mean; how often two equally
good systems differ with p < .05; how often at least one of four equally good systems differs from the first stage with
a Holm-corrected p < .05. They should be 95 %, 5 % and at most 5 %. Takes about a minute for each number of queries.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from trainer.evaluation.statistics import bootstrap, holm, paired_p

ZEROS, ONES = 0.25, 0.2  # shares of queries that are missed, and that have the perfect order
SHAPE = (1.6, 1.2)  # of the beta distribution of the others
SAME = 0.6  # share of the queries that two systems rank alike
SYSTEMS = 4  # compared with the first stage
TRUE_MEAN = ONES + (1 - ZEROS - ONES) * SHAPE[0] / sum(SHAPE)
ALPHA = 0.05


class Rates(NamedTuple):
    """Shares of the simulated collections."""

    covered: float
    false_positive: float
    family_wise: float


def values(rng: np.random.Generator, queries: int) -> np.ndarray:
    """Return per-query values (queries,) of a system."""
    kind = rng.random(queries)
    between = rng.beta(*SHAPE, queries)
    return np.where(kind < ZEROS, 0.0, np.where(kind < ZEROS + ONES, 1.0, between))


def equally_good(rng: np.random.Generator, first: np.ndarray) -> np.ndarray:
    """Return another system's values: the same on some queries, drawn anew on the others."""
    return np.where(rng.random(len(first)) < SAME, first, values(rng, len(first)))


def simulate(queries: int, collections: int, seed: int = 13) -> Rates:
    """Return the rates over simulated collections of so many queries."""
    rng = np.random.default_rng(seed)
    covered = single = family = 0
    for number in range(collections):
        first = values(rng, queries)
        interval = bootstrap(first.tolist(), number)
        covered += interval.low <= TRUE_MEAN <= interval.high
        others = [equally_good(rng, first) for _ in range(SYSTEMS)]
        p_values = [paired_p(other.tolist(), first.tolist(), number) for other in others]
        single += p_values[0] < ALPHA
        family += min(holm(p_values)) < ALPHA
    return Rates(covered / collections, single / collections, family / collections)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--collections", type=int, default=1000)
    parser.add_argument("--queries", type=int, nargs="+", default=[50, 100, 200, 500])
    given = parser.parse_args(arguments)
    print("| queries | interval covers the mean | p < .05, equally good | any of four, Holm |")
    print("| ---: | ---: | ---: | ---: |")
    for queries in given.queries:
        rates = simulate(queries, given.collections)
        print(f"| {queries} | {rates.covered:.1%} | {rates.false_positive:.1%} | {rates.family_wise:.1%} |", flush=True)


if __name__ == "__main__":
    main()
