"""Measure the error rates of the release gate: its verdicts on models whose true difference is known.

    python scripts/gate_table.py                        synthetic dev values
    python scripts/gate_table.py runs/quickstart ...    dev values of finished runs (evaluate/dev.json)
    python scripts/gate_table.py --level 0.9            another confidence of the interval

Dev queries are drawn with replacement, each alternative's mean difference to the first stage is shifted to the true
one, and the gate decides on the draw; as in a run, it repeats the choice among the alternatives. All alternatives are
equally good, so the chosen one has the true difference too.
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
UNCHANGED = 0.5  # share of queries on which the metric does not change; .53 on runbooks
SHARED = 0.85  # correlation of the two modes; .88 on runbooks
BETWEEN = 0.08  # standard deviation of the difference between two alternatives
LARGE = 20_000  # queries of the synthetic population
RULES = {"alone": gate.best_mean, "fused": choose_weight}


@dataclass(frozen=True)
class Population:
    """Per-query differences (alternatives, queries) to the first stage in each mode, each with mean 0."""

    name: str
    modes: dict[str, np.ndarray]


def synthetic(seed: int) -> Population:
    """Return differences with the spread of real ones: many are 0, the rest normal; the two modes are correlated."""
    rng = np.random.default_rng(seed)
    shared, changed = rng.normal(size=LARGE), rng.random(LARGE) >= UNCHANGED
    modes = {}
    for name, alternatives in (("alone", 5), ("fused", 6)):
        one = SHARED**0.5 * shared + (1 - SHARED) ** 0.5 * rng.normal(size=LARGE)
        many = one * SPREAD + rng.normal(size=(alternatives, LARGE)) * BETWEEN / 2**0.5
        modes[name] = many * changed / (1 - UNCHANGED) ** 0.5
    return Population("synthetic", {name: _centred(values) for name, values in modes.items()})


def stored(run: Path) -> Population:
    """Return the differences in a finished run's dev.json."""
    content = read_json(run / "evaluate" / FILE)
    first = np.array(content["opponents"]["first_stage"])
    modes = {name: np.array(mode["values"]) - first for name, mode in content["ways"].items()}
    return Population(run.name, {name: _centred(values) for name, values in modes.items()})


def _centred(values: np.ndarray) -> np.ndarray:
    return values - values.mean(axis=1, keepdims=True)


def measure(population: Population, size: int, draws: int, level: float, seed: int) -> dict[float, dict[str, float]]:
    """Return for each true difference the share of the draws with each outcome.

    Better, cannot tell and worse are the outcomes of the model alone; `released` is the share of the draws in which the
    model passes the gate.
    """
    rng = np.random.default_rng([seed, size])
    counts = list(gate.resamples(size, seed))
    outcomes = {effect: dict.fromkeys([gate.BETTER, gate.UNCLEAR, gate.WORSE, "released"], 0) for effect in EFFECTS}
    for _ in range(draws):
        queries = rng.integers(next(iter(population.modes.values())).shape[1], size=size)
        # A shift of all alternatives by the same amount changes nothing else about a finding.
        plain = {mode: _finding(values[:, queries], mode, counts, level) for mode, values in population.modes.items()}
        for effect, row in outcomes.items():
            by_mode = {mode: gate.outcome_of(one.difference + effect, one.low + effect) for mode, one in plain.items()}
            row[by_mode["alone"]] += 1
            row["released"] += gate.BETTER in by_mode.values()
    return {effect: {name: count / draws for name, count in row.items()} for effect, row in outcomes.items()}


def _finding(values: np.ndarray, mode: str, counts: list[np.ndarray], level: float) -> gate.Finding:
    choose = RULES[mode]
    choice = gate.DevChoice(values, int(choose(values, np.ones((1, values.shape[1])))[0]), choose)
    return gate.compare(choice, "first_stage", np.zeros(values.shape[1]), counts, level)


def main() -> None:
    """Print one table for each population."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, help="run folders; none: synthetic dev values")
    parser.add_argument("--draws", type=int, default=5000)
    parser.add_argument(
        "--resamples", type=int, default=500, help="bootstrap resamples of each draw; a run takes 4,000"
    )
    parser.add_argument("--level", type=float, default=gate.LEVEL)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    gate.RESAMPLES = options.resamples
    columns = ["dev queries", "true difference", "better", "cannot tell", "worse", "released (either mode)"]
    for population in [stored(run) for run in options.runs] or [synthetic(options.seed)]:
        rows = []
        for size in SIZES:
            outcomes = measure(population, size, options.draws, options.level, options.seed)
            for effect, row in outcomes.items():
                rows.append([str(size), f"{effect:+.2f}", *(f"{share:.1%}" for share in row.values())])
        spread = population.modes["alone"].std(axis=1).mean()
        title = (
            f"{population.name}: spread {spread:.3f}, {options.level:.1%} above -{gate.MARGIN}, {options.draws} draws"
        )
        table(title, columns, rows)


if __name__ == "__main__":
    main()
