"""What negatives are worth: one recipe trained on random, highest, default and teacher-checked ones, over seeds.

    python scripts/bench_negatives.py recipes/cosqa.yaml data.path=PATH/TO/cosqa
    python scripts/bench_negatives.py RECIPE [section.key=value ...] --teacher FOLDER --seeds 13 14 15

Every run starts from the same weights: a fresh head is fitted once, before the first. Prints dev and test of each
run as it ends, then the table over seeds. What was done is kept in runs/NAME/negatives.json and not done again.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import Any

import numpy as np

from trainer.console import console, table
from trainer.evaluate import mean_score
from trainer.mine import candidate_lists, mine
from trainer.pipeline import PROBE_DEPTH, Pipeline
from trainer.recipe import Mine, Recipe, load_recipe
from trainer.reranker import Reranker, TokenizedCollection, rerank
from trainer.runs import read_json, write_json
from trainer.teacher import Teacher
from trainer.train import start_head, train

RUNS = Path("runs")


def strategies(section: Mine, teacher: str | None) -> dict[str, Mine]:
    """Ways to mine, all with as many negatives as the recipe asks for."""
    plain: dict[str, Any] = {"max_share_of_positive": None, "margin": None, "deeper_share": 0.0, "bm25_share": None}
    found = {
        "random documents": section.model_copy(update=plain | {"random_share": 1.0}),
        "highest ranks": section.model_copy(update=plain | {"random_share": 0.0, "pick": "top"}),
        "drawn from the hard band": section.model_copy(update=plain | {"random_share": 0.0, "pick": "random"}),
        "below 95 % of the positive": section.model_copy(update={"max_share_of_positive": 0.95}),
        "the recipe's": section,
    }
    if teacher:
        found["the recipe's, teacher's check"] = section.model_copy(update={"teacher": teacher})
    return found


class Bench:
    """One recipe's collection and candidates, and the weights that every run starts from."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.pipeline = Pipeline(recipe, RUNS / recipe.name)
        for stage in ("data", "retrieve"):
            self.pipeline.carry_out(stage, force=False)
        self.candidates = {split: self.pipeline.candidates(split) for split in ("train", "dev", "test")}
        section = recipe.reranker
        self.reranker = Reranker.load(
            section.model, head=section.head, max_length=section.max_length, layers=section.layers
        )
        self.tokenized = TokenizedCollection(self.pipeline.collection, self.reranker.pairs)
        deep = min(PROBE_DEPTH, recipe.rerank_depth)
        lists = candidate_lists(self.pipeline.collection, self.candidates["train"].top(deep))
        start_head(self.reranker, self.tokenized, lists)
        self.start = copy.deepcopy(self.reranker.model.state_dict())
        self.start_dev = self.measure("dev")

    def measure(self, split: str) -> tuple[float, np.ndarray]:
        """The two-stage score of the model as it stands, and its scores."""
        candidates = self.candidates[split].top(self.recipe.rerank_depth)
        scores = rerank(self.reranker, self.tokenized, candidates, self.pipeline.accelerator, note=split)
        return mean_score(self.pipeline.collection, split, candidates, self.pipeline.metric, scores), scores

    def run(self, section: Mine, seed: int) -> dict[str, float]:
        """Mine, train from the start and measure; the best checkpoint on dev counts."""
        collection, accelerator = self.pipeline.collection, self.pipeline.accelerator
        recipe = self.recipe.model_copy(update={"seed": seed, "mine": section})
        teacher = None
        if section.teacher:
            length = recipe.reranker.max_length
            teacher = Teacher(section.teacher, collection, RUNS / ".teachers", accelerator, max_length=length)
        mined = mine(section, collection, self.candidates["train"], seed, teacher)
        self.reranker.model.load_state_dict(self.start)
        dev = iter([self.start_dev])  # the start is known already

        def measure() -> tuple[float, np.ndarray]:
            return next(dev, None) or self.measure("dev")

        folder = self.pipeline.folder / "negatives"
        for older in sorted(folder.rglob("*"), reverse=True):
            older.unlink() if older.is_file() else older.rmdir()
        folder.mkdir(exist_ok=True)
        progress = train(recipe, mined.groups, [], self.reranker, self.tokenized, measure, accelerator, folder)
        accelerator.free_memory()
        best = Reranker.load(folder / "best", max_length=recipe.reranker.max_length)
        self.reranker.model.load_state_dict(best.model.state_dict())
        return {"dev": progress.best_score, "last dev": progress.curve[-1][1], "test": self.measure("test")[0]}


def main() -> None:
    """Run what is missing, print what is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--seeds", type=int, nargs="+", default=[13, 14])
    parser.add_argument("--teacher", help="a cross-encoder; without it the last row is left out")
    arguments = parser.parse_intermixed_args()
    recipe = load_recipe(arguments.recipe, arguments.overrides)
    path = RUNS / recipe.name / "negatives.json"
    done = read_json(path) if path.is_file() else {}
    bench = Bench(recipe)
    metric, collection = bench.pipeline.metric, bench.pipeline.collection
    for split in ("dev", "test"):
        first = mean_score(collection, split, bench.candidates[split].top(recipe.rerank_depth), metric)
        console.print(f"{split}: first stage {first:.4f}, start {bench.measure(split)[0]:.4f}")
    ways = strategies(recipe.mine, arguments.teacher)
    for seed in arguments.seeds:
        for name, section in ways.items():
            key = f"{name}; seed {seed}"
            if key not in done:
                done[key] = bench.run(section, seed)
                write_json(path, done)
            console.print(f"{key}: {done[key]}")
    rows = []
    for name in ways:
        runs = [done[f"{name}; seed {seed}"] for seed in arguments.seeds]
        cells = [[run[kind] for run in runs] for kind in ("dev", "last dev", "test")]
        rows.append([name, *(f"{np.mean(cell):.4f} ({min(cell):.4f} to {max(cell):.4f})" for cell in cells)])
    table(f"{metric} over {len(arguments.seeds)} seeds", ["negatives", "best dev", "last dev", "test"], rows)


if __name__ == "__main__":
    main()
