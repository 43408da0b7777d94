"""Shared code of the scripts on quality: runs of one recipe that differ in one setting, each done only once.

Data, candidates, base model and evaluation are those of the recipe, from the pipeline. The result of a run is saved by
name in runs/NAME/WHAT.json, together with the beginning of a fingerprint of the recipe: results of another recipe are
not used, and remain in the file.
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
from trainer.training import Measure, TrainingJob, train_reranker

RUNS = Path("runs")

Scores = dict[str, float]


def command_line(doc: str | None, seeds: Sequence[int]) -> argparse.ArgumentParser:
    """Return a parser with the shared arguments: a recipe, overrides and seeds."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--seeds", type=int, nargs="+", default=seeds)
    return parser


def main(parser: argparse.ArgumentParser, run: Callable[[Recipe, argparse.Namespace], None]) -> None:
    """Parse the command line and run; a TrainerError is printed as one line, with exit code 2."""
    arguments = parser.parse_intermixed_args()
    try:
        run(load_recipe(arguments.recipe, arguments.overrides), arguments)
    except TrainerError as error:
        parser.error(str(error))


class Trials:
    """The collection and candidates of one recipe, and the results of its trial runs."""

    def __init__(self, recipe: Recipe, what: str) -> None:
        self.recipe = recipe
        run(recipe, RUNS, until="retrieve")
        self.opened = open_run(recipe, RUNS)
        self.folder = self.opened.folder / what
        self.path = self.opened.folder / f"{what}.json"
        self.done: dict[str, dict[str, Any]] = read_json(self.path) if self.path.is_file() else {}

    def once(self, name: str, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return the result of the run with this name, from the file or by running it, and print its numbers.

        The name must state every difference of the run from the recipe.
        """
        key = f"{name}; recipe {self.opened.records['train'].fingerprint[:8]}"
        if key not in self.done:
            self.done[key] = run()
            write_json(self.path, self.done)
        numbers = {what: value for what, value in self.done[key].items() if isinstance(value, float)}
        console.print(f"{name}: {numbers}")
        return self.done[key]

    def first_stage(self, split: str) -> float:
        """Return the metric of the first stage's order."""
        return mean_score(self.opened.collection, split, self.opened.candidates(split), self.opened.metric)

    def mine(self, section: Mine, seed: int) -> Mined:
        """Return the mined groups of all train queries."""
        collection, candidates = self.opened.collection, self.opened.candidates_to_mine(section)
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
        """Train, load the best checkpoint on dev (or the last) into `reranker`, and return dev scores."""
        recipe = self.recipe.model_copy(update={"seed": seed})
        shutil.rmtree(self.folder, ignore_errors=True)  # it may have a checkpoint of the previous run
        self.folder.mkdir()
        job = TrainingJob(
            recipe,
            groups,
            lists,
            reranker,
            tokenized,
            measure,
            self.opened.accelerator,
            self.folder,
            models.has_fresh_head(self.opened),
        )
        progress = train_reranker(job)
        start = progress.curve[0][1]
        if best and (progress.best_step < progress.step or progress.best_score <= start):
            section = recipe.reranker
            saved = Reranker.load(
                self.folder / ("trained" if progress.best_score > start else "start"),
                max_length=section.max_length,
                trust_remote_code=section.trust_remote_code,
            )
            reranker.model.load_state_dict(saved.model.state_dict())
        return {
            "start dev": start,
            "dev": max(start, progress.best_score),
            "last dev": progress.curve[-1][1],
        }

    def train_from_base(self, seed: int, groups: Sequence[Group], lists: Sequence[Group]) -> tuple[Scores, np.ndarray]:
        """Train the recipe's base model; return dev and test results of the best checkpoint, and its test scores.

        Training and its dev scores have the recipe's precision, test is scored in float32, as in a run.
        """
        set_seed(seed)  # for the random weights of a new classifier
        reranker = models.load_base_to_train(self.opened, "train")
        tokenized = TokenizedCollection(self.opened.collection, reranker.pairs)
        results = self.train(
            seed, groups, lists, reranker, tokenized, models.dev_measure(self.opened, reranker, tokenized)
        )
        reranker.compute_in("fp32")
        test, scores = models.measure(self.opened, "test", reranker, tokenized)
        return results | {"test": test}, scores
