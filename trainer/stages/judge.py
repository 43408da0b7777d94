"""Judge: a language model grades the unjudged documents in the top 10 of the measured systems (`evaluate.judge`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from trainer import context, evaluation, reporting
from trainer.context import Notes, Run, Stage, endpoint
from trainer.endpoints import PairScorer
from trainer.evaluation import agreement
from trainer.forecast import Cost, Work
from trainer.recipe import Recipe
from trainer.runtime import console
from trainer.runtime.run_folder import replacing

KEY = "evaluate.judge"


class Judge(Stage):
    """Shows the results with a model's grades beside those with human labels, which stay the headline."""

    name = "judge"
    version = 1
    processes = "main"

    def is_wanted(self, recipe: Recipe) -> bool:
        """Return whether the recipe names a judge."""
        return recipe.evaluate.judge is not None

    def inputs(self, recipe: Recipe) -> dict[str, Any]:
        """Return the model without its address, and the size of the sample of human labels."""
        return endpoint(KEY, recipe) | {"endpoints.agreement_queries": recipe.endpoints.agreement_queries}

    def run(self, run: Run, folder: Path) -> Notes:
        """Grade the holes, compare a sample of grades with human labels, and measure each system with both."""
        collection, results = run.collection, evaluation.Results.load(run.folder / "evaluate")
        scorer = context.pair_scorer(run, KEY, self.name)
        agreed = _agreement(run, scorer, results.split)
        names = [name for name in results.systems if name not in ("ceiling", "seeds")]
        rankings = reporting.read_rankings(collection, run.folder / "evaluate", results.split, names)
        qrels = collection.named_qrels(results.split)
        holes = evaluation.holes_of(qrels, rankings)
        queries = {identity: row for row, identity in enumerate(collection.query_ids)}
        documents = {identity: row for row, identity in enumerate(collection.document_ids)}
        scores = context.score_rows(scorer, collection, [(queries[q], documents[d]) for q, d in holes])
        grades = {hole: float(grade) for hole, grade in zip(holes, scores, strict=True) if not np.isnan(grade)}
        _write_grades(grades, folder)
        metric, seed = run.metric, run.recipe.seed
        judged = evaluation.JudgedResults(
            judge=scorer.service.endpoint.model,
            split=results.split,
            metric=metric,
            queries=len(qrels),
            holes=len(holes),
            graded=len(grades),
            relevant=sum(grade >= agreement.RELEVANT_GRADE for grade in grades.values()),
            unreadable=scorer.unreadable,
            systems=evaluation.judge_systems(metric, qrels, rankings, grades, collection.relevant_from, seed),
            agreement=agreed,
        )
        judged.save(folder)
        return Notes(f"{judged.sentence}; see {folder}")

    def forecast(self, work: Work) -> Cost:
        """Return the cost of the grades, if half of the documents in the top 10 are unjudged."""
        return work.asked(KEY, work.queries("test"), evaluation.HOLES_DEPTH // 2)

    def show(self, run: Run) -> None:
        """Print the table, and write the report again with it."""
        results = evaluation.Results.load(run.folder / "evaluate")
        evaluation.show_judged(evaluation.JudgedResults.load(run.folder / self.folder), results.label)
        run.on_main(lambda: reporting.refresh_report(run.folder))


def _agreement(run: Run, scorer: PairScorer, split: str) -> agreement.Agreement | None:
    """Return the agreement of the judge with human labels of the split; warn if it is as low as a refused teacher's."""
    section, seed = run.recipe.endpoints, run.recipe.seed
    sample = agreement.sample_labels(run.collection, split, section.agreement_queries, seed)
    if sample is None:
        return None
    scores = context.score_rows(scorer, run.collection, sample.pairs)
    agreed = agreement.agreement_of(sample, scores, graded=True, seed=seed)
    if agreed and agreed.measure == agreement.KAPPA and agreement.refusal(agreed, section.least_kappa):
        console.warn("judge", f"{agreed.sentence}: too little to rely on its grades")
    return agreed


def _write_grades(grades: evaluation.Grades, folder: Path) -> None:
    """Write the grades as JSON lines, for people to check."""
    with replacing(folder / "grades.jsonl") as partial, partial.open("w", encoding="utf-8") as file:
        for (query, document), grade in grades.items():
            file.write(json.dumps({"query_id": query, "document_id": document, "grade": round(grade, 4)}) + "\n")
