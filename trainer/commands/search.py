"""Search the corpus of a run from the terminal: its first stage, its reranker, and what the reranker changed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from trainer.commands.run_folders import require_run
from trainer.errors import RunError
from trainer.model import Reranker
from trainer.model.calibration import SIGMOID
from trainer.reporting.queries import cut
from trainer.runtime import console
from trainer.serving.corpus import Corpus

LETTERS = 60  # of a document's text in a column
Hit = Mapping[str, Any]


def search(run: Path, query: str, top_k: int, as_json: bool, trust_remote_code: bool = False) -> None:
    """Print the `top_k` best documents of the run's corpus for a query, before and after reranking.

    Raises RunError for an empty query, and TrainerError for a run without an exported model.
    """
    if not query.strip():
        raise RunError("search: the query is empty; give it in quotation marks after the run folder")
    if not run.is_dir():
        raise RunError(f"{run}: no such folder; name the folder of a finished run, e.g. runs/quickstart")
    require_run(run)
    if as_json:
        console.quiet()  # standard output is JSON and nothing else
    reranker = Reranker.load(run, head="trained", trust_remote_code=trust_remote_code)
    corpus = Corpus.open(run, trust_remote_code)
    found = corpus.search(query)
    final = found.fused(reranker.score([(query, text) for text in found.texts]), reranker.fusion)
    results = found.results(final, SIGMOID.probability(final).tolist())
    if as_json:
        facts = {"model": run.resolve().name, "query": query, "documents": corpus.documents}
        answer = facts | {"fused": reranker.fusion is not None, "results": results[:top_k]}
        typer.echo(json.dumps(answer, indent=2))
    elif not results:
        console.stage("search", f"none of {corpus.documents} documents shares a word with the query")
    elif console.console.is_terminal:
        _show(results, top_k)
    else:
        _print(results[:top_k])


def _show(results: Sequence[Hit], top_k: int) -> None:
    """Print both orders next to each other."""
    before = sorted(results, key=lambda hit: hit["first_stage_rank"])
    rows = [
        [str(rank), _text(one), _moved(other), f"{other['relevance_score']:.3f}", _text(other)]
        for rank, (one, other) in enumerate(zip(before[:top_k], results[:top_k], strict=True), start=1)
    ]
    console.table("", ["", "before", "moved", "score", "after"], rows, left=["before", "after"])


def _print(results: Sequence[Hit]) -> None:
    """Print a line for each document: rank after and before, score, id and text, separated by tabs."""
    for hit in results:
        cells = [hit["rank"], hit["first_stage_rank"], f"{hit['relevance_score']:.4f}", hit["id"], hit["text"]]
        typer.echo("\t".join(console.visible(" ".join(str(cell).split())) for cell in cells))


def _text(hit: Hit) -> str:
    return f"{hit['id']}  {cut(hit['text'], LETTERS)}"


def _moved(hit: Hit) -> str:
    """Return how far a document moved, and its rank before."""
    move = hit["first_stage_rank"] - hit["rank"]
    return f"{'+' if move > 0 else '-'}{abs(move)} (was {hit['first_stage_rank']})" if move else "="
