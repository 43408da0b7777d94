"""What more train queries are worth: one recipe trained on so many of them, under each head, beside the first stage.

    python scripts/learning_curve.py recipes/cosqa.yaml data.path=PATH/TO/cosqa
    python scripts/learning_curve.py RECIPE [section.key=value ...] --queries 50 100 200 400 --seeds 13 14
    python scripts/learning_curve.py RECIPE --heads classifier           # the only one for a base that has it already

A seed orders the train queries that have groups, and so many of the first are taken, so the smaller draws are parts
of the larger. A run knows no other train query: a fresh head is fitted to the candidates of its own alone. Negatives
are mined as the recipe says and are a query's own, however many others there are. What was done is kept in
runs/NAME/learning_curve.json and not done again.
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


def nested(groups: Sequence[Group], seed: int) -> list[int]:
    """The queries of the groups in the order in which a seed takes them."""
    queries = sorted({group.query for group in groups})
    return np.random.default_rng(seed).permutation(queries).tolist()


class Curve(Trials):
    """Trials of one head on parts of the train queries."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe, "learning_curve")
        self.fitted_to = models.lists_for_head(self.opened)

    def runs(self, counts: Sequence[int], seeds: Sequence[int]) -> dict[int, list[Scores]]:
        """What every count of queries came to, seed by seed."""
        mined = {seed: self.mine(self.recipe.mine, seed).groups for seed in seeds}
        known = min(len(nested(groups, seed)) for seed, groups in mined.items())
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
        """Train from the base on the groups of so many queries."""
        chosen = set(nested(groups, seed)[:count])
        groups, lists = ([group for group in every if group.query in chosen] for every in (groups, self.fitted_to))
        return self.train_from_base(seed, groups, lists)[0]


def draw(recipe: Recipe, arguments: argparse.Namespace) -> None:
    """Run what is missing, print the table."""
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
    main(parser, draw)
