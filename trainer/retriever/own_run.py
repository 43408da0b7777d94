"""The user's own engine as first stage: its TREC run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from trainer.data import Faults
from trainer.errors import RecipeError
from trainer.retriever.candidates import NOTHING, Ranking


def read_run(
    path: Path, queries: Mapping[str, int], documents: Mapping[str, int], wanted: Sequence[int], depth: int
) -> Ranking:
    """The user's TREC run (`query Q0 document rank score tag`) for the `wanted` query rows; raises DataError."""
    faults = Faults()
    lists: dict[int, list[tuple[float, int, int]]] = {row: [] for row in wanted}
    seen: dict[tuple[str, str], int] = {}
    for number, line in enumerate(_lines(path), start=1):
        parts = line.split()
        if len(parts) != 6:
            faults.add(
                "broken run lines",
                f"{path}:{number}",
                f"expected `query Q0 document rank score tag`, got {line[:60]!r}",
            )
            continue
        query, _, document, _, score, _ = parts
        if document not in documents:
            faults.add(
                "missing documents", f"{path}:{number}", f"document {document!r} is not in the corpus; use its ids"
            )
        elif query not in queries:
            faults.add(
                "missing queries", f"{path}:{number}", f"query {query!r} is not among the queries; use their ids"
            )
        elif seen.setdefault((query, document), number) != number:
            message = f"document {document!r} is listed for query {query!r} on line {seen[query, document]} already"
            faults.add("documents listed twice", f"{path}:{number}", f"{message}; keep one of them")
        elif not _finite(score):
            faults.add("broken scores", f"{path}:{number}", f"the score is a number, got {score!r}")
        elif queries[query] in lists:
            lists[queries[query]].append((-float(score), number, documents[document]))
    for row in [row for row, found in lists.items() if not found][:1]:
        count = sum(not found for found in lists.values())
        names = {position: identity for identity, position in queries.items()}
        faults.add("queries not in the run", str(path), f"{count} judged queries have no line, e.g. {names[row]!r}")
    faults.stop()
    rows = np.full((len(wanted), depth), NOTHING, dtype=np.int32)
    scores = np.zeros((len(wanted), depth), dtype=np.float32)
    for place, row in enumerate(wanted):
        best = sorted(lists[row])[:depth]
        rows[place, : len(best)] = [document for _, _, document in best]
        scores[place, : len(best)] = [-negated for negated, _, _ in best]
    return Ranking(rows, scores)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"retriever.run: {path} cannot be read: {error}") from None


def _finite(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
