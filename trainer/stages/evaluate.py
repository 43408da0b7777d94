"""Evaluate: measure every system in float32, as exported, on dev for the release gate and on test for the table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer import context, evaluation, reporting
from trainer.context import Notes, Run, Stage
from trainer.recipe import Recipe
from trainer.runtime import console
from trainer.runtime.run_folder import read_json

if TYPE_CHECKING:
    import numpy as np


class Evaluate(Stage):
    """Computes the verdict, the results table, and the data of the report."""

    name = "evaluate"
    version = 8
    processes = "all"

    def inputs(self, recipe: Recipe) -> dict[str, Any]:
        """Return the metrics."""
        return {"evaluate.metrics": recipe.evaluate.metrics}

    def run(self, run: Run, folder: Path) -> Notes:
        """Rerank dev and test with every system on all processes; the main one decides and writes files."""
        systems = _systems(run)
        dev, test = (
            {
                name: context.score(run, model, run.reranked(split), "distil" if name == "distilled" else "train")
                for name, model in systems.items()
            }
            for split in ("dev", "test")
        )
        shipped = list(systems)[-1]
        weights = context.first_stage_weights(run, dev[shipped])
        if not run.is_main:
            return Notes()
        collection, metrics, seed = run.collection, run.recipe.evaluate.metrics, run.recipe.seed
        release, means = evaluation.decide_release(
            collection, run.candidates("dev"), run.metric, dev, _between(run), weights, seed, folder
        )
        release = replace(release, made=tuple(split for split in ("dev", "test") if collection.is_made(split)))
        candidates, default = run.candidates("test"), run.default_candidates("test")
        test["fused"] = evaluation.fuse_with_first_stage(candidates, test[shipped], release.first_stage_weight)
        if default is not None:
            metrics = tuple(dict.fromkeys([*metrics, f"R@{run.recipe.retriever.depth}"]))
        options = {"default": default, "release": release}
        evaluation.evaluate(collection, "test", candidates, test, metrics, seed, folder, **options)
        reporting.write_details(collection, folder, seed)
        console.stage("evaluate", _calibrate(run, dev[shipped], test[shipped], folder))
        weighted = evaluation.describe(weights)
        line = f"{', '.join(test)} measured on test; {weighted}; TREC runs and results.json in {folder}"
        values = {"dev": means, "verdict": release.verdict, "judged": release.sentence}
        return Notes(line, values | {"latency": _latency(run)})

    def show(self, run: Run) -> None:
        """Print the table, and write the report unless there is one of this evaluation."""
        evaluation.show(evaluation.Results.load(run.folder / self.folder))
        run.on_main(lambda: _report(run.folder))


def _calibrate(run: Run, dev: np.ndarray, test: np.ndarray, folder: Path) -> str:
    """Calibrate the exported model by its scores (queries, depth) of dev and test; return what came out."""
    if run.collection.is_made("dev"):
        return "scores are not calibrated: the dev queries are made from documents"
    candidates = {split: run.reranked(split) for split in ("dev", "test")}
    return evaluation.calibrate(run.collection, candidates, dev, test, run.recipe.seed, folder)


def _systems(run: Run) -> dict[str, str]:
    """Return {system: model path} of the systems besides the first stage; the last one is exported."""
    systems = {"fitted" if context.has_fresh_head(run) else "base": str(run.start)}
    if run.notes(run.last_training)["trained_share"]:
        systems["tuned"] = str(run.best())
    if "distil" in run.records:
        systems["distilled"] = str(run.best("distil"))
    return systems


def _between(run: Run) -> list[list[float]]:
    """Return each dev query's value under the interpolated models, which the training stage wrote."""
    path = run.folder / run.last_training / context.BETWEEN
    return read_json(path) if path.is_file() else []


def _latency(run: Run) -> dict[str, Any]:
    """Return the exported model's latency for one query, by the number of candidates."""
    stage = run.exported
    reranker = context.load(run, str(run.best(stage)), "distil" if stage == "distil" else "train")
    return reporting.measure_latency(reranker, run.collection, run.reranked("test"))


def _report(folder: Path) -> None:
    """Write report.html and report.md of a run, unless they are newer than its evaluation."""
    page, done = folder / reporting.PAGE, folder / "evaluate" / "done.json"
    if not page.is_file() or page.stat().st_mtime_ns < done.stat().st_mtime_ns:
        reporting.write_report(folder)
    console.stage("report", str(page))
