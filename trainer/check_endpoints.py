"""The endpoints of a recipe: keys and packages checked before a run, and what it will cost to ask them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from trainer.data import Summary
from trainer.endpoints import Service, estimate_pairs, service_problem
from trainer.errors import RunError, TrainerError
from trainer.evaluation.holes import HOLES_DEPTH
from trainer.model_files import references, tokenizer_file
from trainer.recipe import Recipe

STAGES = {
    "generate.model": "generate",
    "generate.check": "generate",
    "mine.teacher": "mine",
    "distil.teacher": "distil",
    "evaluate.judge": "judge",
}
SYSTEMS = 2  # whose top 10 have unjudged documents of their own, about


def endpoint_errors(recipe: Recipe, runs: Path) -> list[TrainerError]:
    """Return the errors of the recipe's endpoints, except of those whose stage is finished and needs none."""
    asked = dict(recipe.scoring_endpoints)
    if recipe.generate is not None:
        made = {"generate.model": recipe.generate.endpoint, "generate.check": recipe.generate.checker}
        asked |= {key: endpoint for key, endpoint in made.items() if endpoint is not None}
    problems = [
        service_problem(Service(endpoint, key))
        for key, endpoint in asked.items()
        if not _is_finished(key, recipe, runs)
    ]
    return [RunError(problem) for problem in dict.fromkeys(problems) if problem]


def _is_finished(key: str, recipe: Recipe, runs: Path) -> bool:
    return (runs / recipe.name / STAGES[key] / "done.json").is_file()


def endpoint_costs(recipe: Recipe, summary: Summary, runs: Path) -> Iterator[str]:
    """Yield a sentence for each endpoint that a stage has to ask, with what is sent if nothing is stored yet."""
    asked = {key: one for key, one in recipe.scoring_endpoints.items() if not _is_finished(key, recipe, runs)}
    if not asked:
        return
    count = tokenizer_file.token_counter(references.locate(recipe.reranker.model, weights=False))
    queries, documents = summary.query_lengths.texts, summary.document_lengths.texts
    sample = list(zip(queries * (1 + len(documents) // max(1, len(queries))), documents, strict=False))
    for key, endpoint in asked.items():
        judged, each = _pairs(key, recipe, summary)
        estimate = estimate_pairs(endpoint, recipe.endpoints, judged * each, judged, sample, count)
        yield f"{key}: {estimate.sentence(endpoint)}"


def _pairs(key: str, recipe: Recipe, summary: Summary) -> tuple[int, int]:
    """Return the number of queries that an endpoint is asked for, and of the documents of each."""
    if key == "evaluate.judge":
        return summary.judged["test"], min(SYSTEMS * HOLES_DEPTH, summary.documents)
    if key == "distil.teacher":
        assert recipe.distil is not None
        return recipe.distil.queries, min(recipe.distil.depth, summary.documents)
    section = recipe.mine
    window = recipe.rerank_depth if section.groups == "lists" else section.last_rank - section.first_rank + 1
    return summary.judged["train"], 1 + min(window, summary.documents)  # the judged documents come on top
