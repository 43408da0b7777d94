"""Measure quality by the number of train queries: one recipe, with each head, compared with the first stage.

    python scripts/learning_curve.py recipes/cosqa.yaml data.path=PATH/TO/cosqa
    python scripts/learning_curve.py RECIPE [section.key=value ...] --queries 50 100 200 400 --seeds 13 14
    python scripts/learning_curve.py RECIPE --heads classifier           # the only one for a base with that head

A seed shuffles the train queries that have groups, and each run uses the first ones, so smaller samples are parts of
larger ones. A run uses no other train query: a new head is fitted to the candidates of its own queries only. Negatives
are mined as in the recipe, and do not depend on the number of queries. Results are saved in
runs/NAME/learning_curve.json, and finished runs are not repeated.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial

import numpy as np
from trials import Scores, Trials, command_line, main

from trainer.context import models
from trainer.data.groups import Group
from trainer.errors import TrainerError
from trainer.recipe import Recipe
from trainer.runtime.console import table


def shuffled_queries(groups: Sequence[Group], seed: int) -> list[int]:
    """Return the queries of the groups, shuffled by a seed."""
    queries = sorted({group.query for group in groups})
    return np.random.default_rng(seed).permutation(queries).tolist()


class Curve(Trials):
    """Trials of one head on parts of the train queries."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe, "learning_curve")
        self.head_lists = models.lists_for_fit(self.opened)

    def runs(self, counts: Sequence[int], seeds: Sequence[int]) -> dict[int, list[Scores]]:
        """Return the results by number of queries, one for each seed."""
        mined = {seed: self.mine(self.recipe.mine, seed).groups for seed in seeds}
        known = min(len(shuffled_queries(groups, seed)) for seed, groups in mined.items())
        if max(counts) > known:
            raise TrainerError(f"--queries {max(counts)}: only {known} train queries have groups; ask for fewer")
        head = self.recipe.reranker.head
        return {
            count: [
                self.once(f"{head}; {count} queries; seed {seed}", partial(self.run, mined[seed], count, seed))
                for seed in seeds
            ]
            for count in counts
        }

    def run(self, groups: Sequence[Group], count: int, seed: int) -> Scores:
        """Train from the base model on the groups of the first `count` queries."""
        chosen = set(shuffled_queries(groups, seed)[:count])
        groups, lists = ([group for group in every if group.query in chosen] for every in (groups, self.head_lists))
        return self.train_from_base(seed, groups, lists)[0]


def compare(recipe: Recipe, arguments: argparse.Namespace) -> None:
    """Run the missing runs, and print the table."""
    rows = []
    for head in arguments.heads:
        section = recipe.reranker.model_copy(update={"head": head})
        curve = Curve(recipe.model_copy(update={"reranker": section}))
        if not rows:
            first = (f"{curve.first_stage(split):.4f}" for split in ("dev", "test"))
            rows.append(["first stage", "", next(first), "", next(first)])
        for count, runs in curve.runs(arguments.queries, arguments.seeds).items():
            means = (np.mean([run[kind] for run in runs]) for kind in ("start dev", "dev", "last dev", "test"))
            rows.append([f"{head}, {count} queries", *(f"{mean:.4f}" for mean in means)])
    title = f"{recipe.evaluate.metrics[0]}, mean over {len(arguments.seeds)} seeds"
    table(title, ["", "untrained dev", "best dev", "last dev", "test"], rows)


if __name__ == "__main__":
    parser = command_line(__doc__, seeds=[13])
    parser.add_argument("--queries", type=int, nargs="+", default=[50, 100, 200, 400])
    parser.add_argument(
        "--heads", nargs="+", choices=("interaction", "classifier"), default=["interaction", "classifier"]
    )
    main(parser, compare)
