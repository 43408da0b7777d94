"""`reranker generate` with an option: the forecast of requests and costs, and files of the Batch API."""

from __future__ import annotations

from pathlib import Path

from trainer import generation, pipeline
from trainer.context import Run
from trainer.data import Collection
from trainer.endpoints import store_of
from trainer.endpoints.chat import ChatRequest
from trainer.errors import RecipeError
from trainer.model_files import references, tokenizer_file
from trainer.recipe import Recipe
from trainer.recipe.generate import Generate
from trainer.runtime import console
from trainer.stages.generate import documents_of, planned

MOST_COUNTED = 20_000  # documents among which stored answers are counted, if the recipe asks fewer


def open_data(recipe: Recipe, runs: Path) -> Run:
    """Return the run of a recipe with its collection read; raise RecipeError if it sends no requests."""
    pipeline.require_stage("generate", recipe)
    if recipe.generate and recipe.generate.extracts:
        raise RecipeError("generate.model: extract sends no requests; run `reranker generate RECIPE` without options")
    pipeline.run(recipe, runs, until="data")
    return pipeline.open_run(recipe, runs)


def show_estimate(run: Run) -> None:
    """Print requests, tokens, costs and hours."""
    section, collection = _section(run), Collection.open(run.folder / "data")
    sources = generation.plan(collection, run.recipe.data, max(section.documents, MOST_COUNTED))
    requests = [request for request, _ in generation.requests_of(section, collection, sources)]
    named = references.locate(section.tokenizer or run.recipe.reranker.model, weights=False)
    count_tokens, store = tokenizer_file.token_counter(named), store_of(run.folder.parent)
    expected = generation.forecast(section, requests, section.documents, store, count_tokens)
    for line in expected.lines(section):
        console.stage("generate", line)


def write_batch(run: Run, path: Path) -> None:
    """Write the requests that are not answered yet."""
    section, store = _section(run), store_of(run.folder.parent)
    assert section.endpoint is not None
    count = generation.write_requests(_requests(run), section.endpoint, store, path)
    console.stage("generate", f"{count} requests in {path}; then: reranker generate RECIPE --answers FILE")


def read_batch(run: Run, path: Path) -> None:
    """Add the answers of a batch to those that are stored."""
    keys = {request.key for request in _requests(run)}
    added, unusable = generation.read_answers(path, keys, store_of(run.folder.parent))
    console.stage("generate", f"{added} answers added")
    if unusable:
        console.warn("generate", f"{unusable} lines are no answer to a request of this recipe")


def _requests(run: Run) -> list[ChatRequest]:
    """Return the requests that a run of the stage would send."""
    collection = Collection.open(run.folder / "data")
    _, requests = planned(run, collection, documents_of(run, collection))
    return [request for request, _ in requests]


def _section(run: Run) -> Generate:
    assert run.recipe.generate is not None
    return run.recipe.generate
