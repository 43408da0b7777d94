"""Evaluate: measure every system in float32, as exported, on dev for the release gate and on test for the table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from trainer import context, evaluation, model, reporting
from trainer.context import Notes, Run, Stage
from trainer.forecast import Cost, Work
from trainer.model.fusion import LISTS
from trainer.recipe import Recipe
from trainer.runtime import console
from trainer.runtime.run_folder import read_json

# Seconds on the machine of the forecast's constants: resampling, and measuring a query under all systems and weights.
STATISTICS, MEASURED = 3.0, 1.5e-2
CANDIDATE = 1900  # bytes of a candidate with its text in the records of the queries


class Evaluate(Stage):
    """Computes the verdict, the results table, and the data of the report."""

    name = "evaluate"
    version = 11
    processes = "all"

    def inputs(self, recipe: Recipe) -> dict[str, Any]:
        """Return the metrics, and the loss that is allowed on guard sets if there are any."""
        section = recipe.evaluate
        allowed = {} if section.guard is None else {"evaluate.max_guard_drop": section.max_guard_drop}
        return {"evaluate.metrics": section.metrics} | allowed

    def run(self, run: Run, folder: Path) -> Notes:
        """Rerank dev and test with every system on all processes; the main one decides and writes files."""
        systems = _systems(run)
        dev, test = ({name: _score(run, name, systems[name], split) for name in systems} for split in ("dev", "test"))
        shipped = list(systems)[-1]
        seeds = _seeds(run, dev, test)
        if run.recipe.passages is not None or model.has_mixture(systems[shipped]):
            test["other_libraries"] = _in_other_libraries(run, systems[shipped])
        weights = context.first_stage_weights(run, dev[shipped])
        if not run.is_main:
            return Notes()
        collection, metrics, seed = run.collection, run.recipe.evaluate.metrics, run.recipe.seed
        release, means = evaluation.decide_release(
            collection,
            run.candidates("dev"),
            run.metric,
            dev,
            _between(run),
            weights,
            seed,
            folder,
            other_seeds=[one.dev for one in seeds if not one.exported],
            trained=run.recipe.train.epochs > 0,
        )
        release = _with_guard_sets(run, release)
        release = replace(release, made=tuple(split for split in ("dev", "test") if collection.is_made(split)))
        candidates, default = run.candidates("test"), run.default_candidates("test")
        test["fused"] = evaluation.fuse_with_first_stage(candidates, test[shipped], release.first_stage_weight)
        if default is not None:
            metrics = tuple(dict.fromkeys([*metrics, f"R@{run.recipe.retriever.depth}"]))
        options = {"default": default, "release": release, "seeds": seeds}
        evaluation.evaluate(collection, "test", candidates, test, metrics, seed, folder, **options)
        reporting.write_details(collection, folder, seed)
        calibrated = _calibrate(run, dev[shipped], test[shipped], folder)
        console.stage("evaluate", calibrated)
        weighted = evaluation.describe(weights)
        line = f"{', '.join(test)} measured on test; {weighted}; TREC runs and results.json in {folder}"
        values = {"dev": means, "verdict": release.verdict, "judged": release.sentence, "calibrated": calibrated}
        return Notes(line, values | _of_guard_and_seeds(run, release) | {"latency": _latency(run)})

    def forecast(self, work: Work) -> Cost:
        """Return the cost of every system's float32 scores on dev and test, of the statistics and of the latency."""
        speed, trained = work.reranker, work.recipe.train.epochs > 0
        systems = trained + len(work.recipe.training_seeds)
        pairs = systems * work.pairs("dev", "test")
        if work.may_get_signals:
            pairs += work.pairs("dev", "test") + work.pairs("test")
        if not work.fitted_lists:  # the base's scores of train queries, to which the first stage's weight is fitted
            pairs += min(LISTS, work.lists) * work.depth
        cost = Cost((2 * systems + 1) * speed.load + pairs * speed.exact, CANDIDATE * work.queries("test") * work.depth)
        if work.recipe.distil:
            student = work.student
            cost += Cost(2 * student.load + work.pairs("dev", "test") * student.exact)
        cost += Cost(reporting.seconds_of_latency(work.depth, speed.exact))
        return cost + work.plain(STATISTICS + work.queries("dev", "test") * MEASURED)

    def show(self, run: Run) -> None:
        """Print the table, and write the report unless there is one of this evaluation."""
        evaluation.show(evaluation.Results.load(run.folder / self.folder))
        run.on_main(lambda: reporting.refresh_report(run.folder))


def _calibrate(run: Run, dev: np.ndarray, test: np.ndarray, folder: Path) -> str:
    """Calibrate the exported model by its scores (queries, depth) of dev and test; return what came out."""
    if run.collection.is_made("dev"):
        return "scores are not calibrated: the dev queries are made from documents"
    candidates = {split: run.reranked(split) for split in ("dev", "test")}
    return evaluation.calibrate(run.collection, candidates, dev, test, run.recipe.seed, folder)


def _systems(run: Run) -> dict[str, Path]:
    """Return {system: model path} of the systems besides the first stage; the last one is exported.

    A base without a fresh head is measured as it was, and as fitted if lexical signals beside its logit changed.
    """
    systems = {} if context.has_fresh_head(run) else {"base": run.start}
    if not systems or context.changes_signals(run):
        systems["fitted"] = run.start
    if run.notes(run.last_training)["trained_share"]:
        systems["tuned"] = run.best()
    if "distil" in run.records:
        systems["distilled"] = run.best("distil")
    return systems


def _score(run: Run, system: str, folder: Path, split: str) -> np.ndarray:
    """Return a system's scores (queries, depth) of a split's candidates."""
    if system == "base":
        return context.score_before(run, run.reranked(split))
    return context.score(run, str(folder), run.reranked(split), "distil" if system == "distilled" else "train")


def _seeds(run: Run, dev: dict[str, np.ndarray], test: dict[str, np.ndarray]) -> list[evaluation.SeedScores]:
    """Return the scores of the best model of each seed's training, one model in memory at a time; [] for one seed."""
    if len(run.trainings) == 1:
        return []
    best, seeds = next(name for name in ("tuned", "fitted", "base") if name in dev), []
    for seed, folder in run.trainings.items():
        exported = folder == run.last_training
        scores = [
            systems[best] if exported else context.score(run, str(run.best(folder)), run.reranked(split))
            for split, systems in (("dev", dev), ("test", test))
        ]
        of_dev = evaluation.mean_score(run.collection, "dev", run.candidates("dev"), run.metric, scores[0])
        seeds.append(evaluation.SeedScores(seed, exported, scores[0], of_dev, scores[1]))
    return seeds


def _in_other_libraries(run: Run, folder: Path) -> np.ndarray:
    """Return the exported model's scores of test as other libraries compute them: logits of truncated documents."""
    stage = "distil" if run.exported == "distil" else "train"
    return context.score(run, str(folder), run.reranked("test"), stage, windows=False, mixture=False)


def _between(run: Run) -> list[list[float]]:
    """Return each dev query's value under the interpolated models, which the trainings with all seeds wrote."""
    paths = [run.folder / folder / context.BETWEEN for folder in run.trainings.values()]
    return [values for path in paths if path.is_file() for values in read_json(path)]


def _with_guard_sets(run: Run, release: evaluation.Release) -> evaluation.Release:
    """Return the verdict with the findings on guard sets, if the recipe has any."""
    section = run.recipe.evaluate
    if section.guard is None:
        return release
    findings = evaluation.judge_guard_sets(run.folder / "guard", section.max_guard_drop, run.recipe.seed)
    return evaluation.with_guard_sets(release, findings)


def _of_guard_and_seeds(run: Run, release: evaluation.Release) -> dict[str, Any]:
    """Return values for `done.json` that only recipes with guard sets or several seeds have."""
    lost = [finding.set for finding in release.guard if finding.judged == evaluation.LOST]
    values: dict[str, Any] = {"lost_guard_sets": lost} if release.guard else {}
    return values | ({"training": run.last_training} if len(run.trainings) > 1 else {})


def _latency(run: Run) -> dict[str, Any]:
    """Return the exported model's latency for one query, by the number of candidates."""
    stage = run.exported
    reranker = context.load(run, str(run.best(stage)), "distil" if stage == "distil" else "train")
    return reporting.measure_latency(reranker, run.collection, run.reranked("test"))
