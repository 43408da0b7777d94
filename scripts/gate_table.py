"""How far the release gate can be trusted: how often it says what of models whose true difference is known.

    python scripts/gate_table.py                        synthetic dev values
    python scripts/gate_table.py runs/quickstart ...    dev values that runs left (evaluate/dev.json)
    python scripts/gate_table.py --level 0.9            another confidence of the interval

Dev queries are drawn with replacement, each alternative's mean difference to the first stage is moved to the true one,
and the gate judges the draw with the choice among the alternatives repeated, as in a run. Since all alternatives are
equally good, whatever is chosen is truly different by that much.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trainer.evaluation import gate
from trainer.evaluation.fusion import choose_weight
from trainer.evaluation.release import FILE
from trainer.runtime.console import table
from trainer.runtime.run_folder import read_json

SIZES = (50, 100, 200, 400)
EFFECTS = (-0.03, -0.01, 0.0, 0.02, 0.03, 0.05)
SPREAD = 0.25  # standard deviation of a query's difference in nDCG@10
UNCHANGED = 0.5  # share of queries on which the metric stays as it was; .53 on runbooks
SHARED = 0.85  # correlation of both ways of use; .88 on runbooks
BETWEEN = 0.08  # standard deviation of the difference between two alternatives
LARGE = 20_000  # queries of the synthetic population
RULES = {"alone": gate.best_mean, "fused": choose_weight}


@dataclass(frozen=True)
class Population:
    """Per-query differences (alternatives, queries) to the first stage in each way of use, each with mean 0."""

    name: str
    ways: dict[str, np.ndarray]


def synthetic(seed: int) -> Population:
    """Return differences with the spread of real ones: many are 0, the rest normal; both ways of use correlate."""
    rng = np.random.default_rng(seed)
    shared, changed = rng.normal(size=LARGE), rng.random(LARGE) >= UNCHANGED
    ways = {}
    for name, alternatives in (("alone", 5), ("fused", 6)):
        one = SHARED**0.5 * shared + (1 - SHARED) ** 0.5 * rng.normal(size=LARGE)
        many = one * SPREAD + rng.normal(size=(alternatives, LARGE)) * BETWEEN / 2**0.5
        ways[name] = many * changed / (1 - UNCHANGED) ** 0.5
    return Population("synthetic", {name: _centred(values) for name, values in ways.items()})


def stored(run: Path) -> Population:
    """Return the differences that a run left."""
    content = read_json(run / "evaluate" / FILE)
    first = np.array(content["opponents"]["first_stage"])
    ways = {name: np.array(way["values"]) - first for name, way in content["ways"].items()}
    return Population(run.name, {name: _centred(values) for name, values in ways.items()})


def _centred(values: np.ndarray) -> np.ndarray:
    return values - values.mean(axis=1, keepdims=True)


def measure(population: Population, size: int, draws: int, level: float, seed: int) -> dict[float, dict[str, float]]:
    """Return for each true difference how often (shares of the draws) the gate comes to each judgement.

    `alone` is better, cannot tell or worse; `released` counts all draws in which the model leaves unforced.
    """
    rng = np.random.default_rng([seed, size])
    counts = list(gate.resamples(size, seed))
    found = {effect: dict.fromkeys([gate.BETTER, gate.UNCLEAR, gate.WORSE, "released"], 0) for effect in EFFECTS}
    for _ in range(draws):
        queries = rng.integers(next(iter(population.ways.values())).shape[1], size=size)
        # Where every alternative moves by as much, nothing else about a finding changes.
        plain = {way: _finding(values[:, queries], way, counts, level) for way, values in population.ways.items()}
        for effect, row in found.items():
            judged = {way: gate.judged(one.difference + effect, one.low + effect) for way, one in plain.items()}
            row[judged["alone"]] += 1
            row["released"] += gate.BETTER in judged.values()
    return {effect: {name: count / draws for name, count in row.items()} for effect, row in found.items()}


def _finding(values: np.ndarray, way: str, counts: list[np.ndarray], level: float) -> gate.Finding:
    choose = RULES[way]
    chosen = int(choose(values, np.ones((1, values.shape[1])))[0])
    return gate.compare(gate.Way(values, chosen, choose), "first_stage", np.zeros(values.shape[1]), counts, level)


def main() -> None:
    """Print one table for each population."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, help="run folders; none: synthetic dev values")
    parser.add_argument("--draws", type=int, default=5000)
    parser.add_argument("--resamples", type=int, default=500, help="of each draw; a run takes 4,000")
    parser.add_argument("--level", type=float, default=gate.LEVEL)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    gate.RESAMPLES = options.resamples
    columns = ["dev queries", "true difference", "better", "cannot tell", "worse", "leaves (either way)"]
    for population in [stored(run) for run in options.runs] or [synthetic(options.seed)]:
        rows = []
        for size in SIZES:
            found = measure(population, size, options.draws, options.level, options.seed)
            for effect, row in found.items():
                rows.append([str(size), f"{effect:+.2f}", *(f"{share:.1%}" for share in row.values())])
        spread = population.ways["alone"].std(axis=1).mean()
        title = (
            f"{population.name}: spread {spread:.3f}, {options.level:.1%} above -{gate.MARGIN}, {options.draws} draws"
        )
        table(title, columns, rows)


if __name__ == "__main__":
    main()
