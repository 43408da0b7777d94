"""What the scripts on quality share: runs of one recipe that differ in one thing, none done twice.

Data and candidates are the recipe's own, as the pipeline makes them. What a run came to is kept by name in
runs/NAME/WHAT.json, together with the beginning of a fingerprint of the recipe: under another recipe it counts as not
done, and stays in the file.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.utils import set_seed

from trainer.console import console
from trainer.errors import TrainerError
from trainer.evaluate import mean_score
from trainer.groups import Group
from trainer.mine import Mined, candidate_lists, mine
from trainer.pipeline import PROBE_DEPTH, Pipeline
from trainer.recipe import Mine, Recipe, load_recipe
from trainer.reranker import Reranker, TokenizedCollection, rerank
from trainer.retriever import Candidates
from trainer.runs import read_json, write_json
from trainer.teacher import Teacher
from trainer.train import train

RUNS = Path("runs")

Scores = dict[str, float]
Measure = Callable[[], tuple[float, np.ndarray]]


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
        self.pipeline = Pipeline(recipe, RUNS / recipe.name)
        for stage in ("data", "retrieve"):
            self.pipeline.carry_out(stage, force=False)
        self.candidates = {split: self.pipeline.candidates(split) for split in ("train", "dev", "test")}
        self.folder = self.pipeline.folder / what
        self.path = self.pipeline.folder / f"{what}.json"
        self.done: dict[str, dict[str, Any]] = read_json(self.path) if self.path.is_file() else {}

    def once(self, name: str, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What the run of this name came to, now or some time before; its numbers are printed."""
        key = f"{name}; recipe {self.pipeline.stages['train'].fingerprint[:8]}"
        if key not in self.done:
            self.done[key] = run()
            write_json(self.path, self.done)
        numbers = {what: value for what, value in self.done[key].items() if isinstance(value, float)}
        console.print(f"{name}: {numbers}")
        return self.done[key]

    def load_base(self) -> Reranker:
        """The recipe's base as it is before any training."""
        section = self.recipe.reranker
        return Reranker.load(
            section.model,
            head=section.head,
            max_length=section.max_length,
            layers=section.layers,
            trust_remote_code=section.trust_remote_code,
        )

    def lists(self) -> list[Group]:
        """The train queries' candidates that a fresh head is fitted to."""
        deep = min(PROBE_DEPTH, self.recipe.rerank_depth)
        return candidate_lists(self.pipeline.collection, self.candidates["train"].top(deep))

    def reranked(self, split: str) -> Candidates:
        """The candidates of a split that are reranked and measured."""
        return self.candidates[split].top(self.recipe.rerank_depth)

    def first_stage(self, split: str) -> float:
        """The metric of the candidates as they were retrieved."""
        return mean_score(self.pipeline.collection, split, self.reranked(split), self.pipeline.metric)

    def measure(self, split: str, reranker: Reranker, tokenized: TokenizedCollection) -> tuple[float, np.ndarray]:
        """The two-stage score of the model as it stands, and its scores."""
        candidates = self.reranked(split)
        scores = rerank(reranker, tokenized, candidates, self.pipeline.accelerator, note=split)
        return mean_score(self.pipeline.collection, split, candidates, self.pipeline.metric, scores), scores

    def mine(self, section: Mine, seed: int) -> Mined:
        """Groups for all train queries."""
        collection, teacher = self.pipeline.collection, None
        if section.teacher:
            length = self.recipe.reranker.max_length
            teacher = Teacher(
                section.teacher, collection, RUNS / ".teachers", self.pipeline.accelerator, max_length=length
            )
        return mine(section, collection, self.candidates["train"], seed, teacher)

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
        recipe, accelerator = self.recipe.model_copy(update={"seed": seed}), self.pipeline.accelerator
        shutil.rmtree(self.folder, ignore_errors=True)  # a checkpoint of the run before
        self.folder.mkdir()
        progress = train(recipe, groups, lists, reranker, tokenized, measure, accelerator, self.folder)
        if best and progress.best_step < progress.step:
            section = recipe.reranker
            kept = Reranker.load(
                self.folder / "best", max_length=section.max_length, trust_remote_code=section.trust_remote_code
            )
            reranker.model.load_state_dict(kept.model.state_dict())
        return {
            "start dev": progress.curve[0][1],
            "dev": progress.best_score,
            "last dev": progress.curve[-1][1],
        }

    def train_from_base(self, seed: int, groups: Sequence[Group], lists: Sequence[Group]) -> tuple[Scores, np.ndarray]:
        """Train the recipe's base; what dev and test had with the best checkpoint, and the scores on test."""
        set_seed(seed)  # a fresh classifier is drawn
        reranker = self.load_base()
        tokenized = TokenizedCollection(self.pipeline.collection, reranker.pairs)
        found = self.train(seed, groups, lists, reranker, tokenized, lambda: self.measure("dev", reranker, tokenized))
        test, scores = self.measure("test", reranker, tokenized)
        return found | {"test": test}, scores
