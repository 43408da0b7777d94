"""Compare strategies of selecting negatives: one recipe trained with each of them, over several seeds.

    python scripts/bench_negatives.py recipes/cosqa.yaml data.path=PATH/TO/cosqa
    python scripts/bench_negatives.py RECIPE [section.key=value ...] --teacher FOLDER --seeds 13 14 15

Every run starts from the same weights, with a new head fitted once, and is measured at its last step: with harmful
negatives the best step on dev would be step 0, whatever they are. Prints dev and test of each run when it ends, then
the table over seeds. Results are saved in runs/NAME/negatives.json, and finished runs are not repeated.
"""

from __future__ import annotations

import argparse
import copy
from functools import partial
from typing import Any

import numpy as np
from trials import Scores, Trials, command_line, main

from trainer.context import models
from trainer.model import TokenizedCollection
from trainer.recipe import Mine, Recipe
from trainer.runtime.console import console, table
from trainer.training import start_head

SHARE = 0.95  # limit on a negative's similarity, as a share of the positive's


def strategies(section: Mine, teacher: str | None) -> dict[str, Mine]:
    """Return the mining strategies, all with the recipe's number of negatives."""
    plain: dict[str, Any] = {"max_share_of_positive": None}
    band = section.model_copy(update=plain | {"random_share": 0.0, "pick": "random"})
    sections = {
        "random documents": band.model_copy(update={"random_share": 1.0}),
        "highest ranks": band.model_copy(update={"pick": "top"}),
        "sampled from the rank window": band,
        f"the same, below {SHARE:.0%} of the positive": band.model_copy(update={"max_share_of_positive": SHARE}),
    }
    if teacher:
        sections[f"the same, filtered by {teacher}"] = band.model_copy(update={"teacher": teacher})
    return sections


class Bench(Trials):
    """Trials whose runs all start from the same weights."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe, "negatives")
        self.reranker = models.load_base(self.opened)
        self.tokenized = TokenizedCollection(self.opened.collection, self.reranker.pairs)
        if self.reranker.is_interaction:
            start_head(self.reranker, self.tokenized, models.lists_for_fit(self.opened), recipe.train.fit_lists)
        self.start = copy.deepcopy(self.reranker.model.state_dict())
        self.dev = models.dev_measure(self.opened, self.reranker, self.tokenized)
        self.start_dev = self.dev()

    def run(self, section: Mine, seed: int) -> Scores:
        """Mine, train from the same weights and measure."""
        self.reranker.model.load_state_dict(self.start)
        dev = iter([self.start_dev])  # the value at step 0 is known already

        def measure() -> float:
            return next(dev, None) or self.dev()

        mined = self.mine(section, seed).groups
        scores = self.train(seed, mined, [], self.reranker, self.tokenized, measure, best=False)
        return scores | {"test": models.measure(self.opened, "test", self.reranker, self.tokenized)[0]}


def compare(recipe: Recipe, arguments: argparse.Namespace) -> None:
    """Run the missing runs, and print the table."""
    bench = Bench(recipe)
    test, _ = models.measure(bench.opened, "test", bench.reranker, bench.tokenized)
    for split, start in (("dev", bench.start_dev), ("test", test)):
        console.print(f"{split}: first stage {bench.first_stage(split):.4f}, before training {start:.4f}")
    runs: dict[str, list[Scores]] = {}
    for seed in arguments.seeds:
        for name, section in strategies(recipe.mine, arguments.teacher).items():
            done = bench.once(f"{name}; seed {seed}", partial(bench.run, section, seed))
            runs.setdefault(name, []).append(done)
    rows = []
    for name, results in runs.items():
        cells = [[run[kind] for run in results] for kind in ("last dev", "test")]
        rows.append([name, *(f"{np.mean(cell):.4f} ({min(cell):.4f} to {max(cell):.4f})" for cell in cells)])
    title = f"{bench.opened.metric} over {len(arguments.seeds)} seeds"
    table(title, ["negatives", "dev", "test"], rows)


if __name__ == "__main__":
    parser = command_line(__doc__, seeds=[13, 14])
    parser.add_argument("--teacher", help="a cross-encoder; without it the last row is left out")
    main(parser, compare)
