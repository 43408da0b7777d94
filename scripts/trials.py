"""What the scripts on quality share: runs of one recipe that differ in one thing, none done twice.

Data, candidates, base and measurement are the recipe's own, as the pipeline makes them. What a run came to is kept by
name in runs/NAME/WHAT.json, together with the beginning of a fingerprint of the recipe: under another recipe it counts
as not done, and stays in the file.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.utils import set_seed

from trainer.context import models
from trainer.data.groups import Group
from trainer.errors import TrainerError
from trainer.evaluation.two_stage import mean_score
from trainer.mining import Mined, mine
from trainer.model import Reranker, TokenizedCollection
from trainer.pipeline import open_run, run
from trainer.recipe import Mine, Recipe, load_recipe
from trainer.runtime.console import console
from trainer.runtime.run_folder import read_json, write_json
from trainer.training import Measure, train_reranker

RUNS = Path("runs")

Scores = dict[str, float]


def command_line(doc: str | None, seeds: Sequence[int]) -> argparse.ArgumentParser:
    """What every script on quality takes: a recipe, what is laid over it, and seeds."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--seeds", type=int, nargs="+", default=seeds)
    return parser


def main(parser: argparse.ArgumentParser, run: Callable[[Recipe, argparse.Namespace], None]) -> None:
    """Read the command line and run; what the user can mend is said in a line, with exit 2."""
    arguments = parser.parse_intermixed_args()
    try:
        run(load_recipe(arguments.recipe, arguments.overrides), arguments)
    except TrainerError as error:
        parser.error(str(error))


class Trials:
    """One recipe's collection and candidates, and what its runs came to."""

    def __init__(self, recipe: Recipe, what: str) -> None:
        self.recipe = recipe
        run(recipe, RUNS, until="retrieve")
        self.opened = open_run(recipe, RUNS)
        self.folder = self.opened.folder / what
        self.path = self.opened.folder / f"{what}.json"
        self.done: dict[str, dict[str, Any]] = read_json(self.path) if self.path.is_file() else {}

    def once(self, name: str, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What the run of this name came to, now or some time before; its numbers are printed.

        The name says all in which the run differs from the recipe.
        """
        key = f"{name}; recipe {self.opened.records['train'].fingerprint[:8]}"
        if key not in self.done:
            self.done[key] = run()
            write_json(self.path, self.done)
        numbers = {what: value for what, value in self.done[key].items() if isinstance(value, float)}
        console.print(f"{name}: {numbers}")
        return self.done[key]

    def first_stage(self, split: str) -> float:
        """The metric of the candidates as they were retrieved."""
        return mean_score(self.opened.collection, split, self.opened.candidates(split), self.opened.metric)

    def mine(self, section: Mine, seed: int) -> Mined:
        """Groups for all train queries."""
        collection, candidates = self.opened.collection, self.opened.candidates("train")
        teacher = (
            models.teacher(self.opened, section.teacher, collection, section.teacher_trust_remote_code)
            if section.teacher
            else None
        )
        return mine(section, collection, candidates, seed, teacher)

    def train(
        self,
        seed: int,
        groups: Sequence[Group],
        lists: Sequence[Group],
        reranker: Reranker,
        tokenized: TokenizedCollection,
        measure: Measure,
        best: bool = True,
    ) -> Scores:
        """Train; `reranker` then holds the best checkpoint on dev, or the last. What dev had on the way."""
        recipe = self.recipe.model_copy(update={"seed": seed})
        shutil.rmtree(self.folder, ignore_errors=True)  # a checkpoint of the run before
        self.folder.mkdir()
        progress = train_reranker(
            recipe,
            groups,
            lists,
            reranker,
            tokenized,
            measure,
            self.opened.accelerator,
            self.folder,
            fresh_head=models.has_fresh_head(self.opened),
        )
        start = progress.curve[0][1]
        if best and (progress.best_step < progress.step or progress.best_score <= start):
            section = recipe.reranker
            kept = Reranker.load(
                self.folder / ("trained" if progress.best_score > start else "start"),
                max_length=section.max_length,
                trust_remote_code=section.trust_remote_code,
            )
            reranker.model.load_state_dict(kept.model.state_dict())
        return {
            "start dev": start,
            "dev": max(start, progress.best_score),
            "last dev": progress.curve[-1][1],
        }

    def train_from_base(self, seed: int, groups: Sequence[Group], lists: Sequence[Group]) -> tuple[Scores, np.ndarray]:
        """Train the recipe's base; what dev and test had with the best checkpoint, and the scores on test."""
        set_seed(seed)  # a fresh classifier is drawn
        reranker = models.load_base(self.opened)
        tokenized = TokenizedCollection(self.opened.collection, reranker.pairs)
        found = self.train(
            seed, groups, lists, reranker, tokenized, models.dev_measure(self.opened, reranker, tokenized)
        )
        test, scores = models.measure(self.opened, "test", reranker, tokenized)
        return found | {"test": test}, scores
