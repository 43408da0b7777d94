"""The user's own engine as first stage, read from its TREC run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from trainer.data import Faults, read_lines, trec_fields, trec_id
from trainer.retriever.candidates import NOTHING, RankedLists

MAX_SCORE = 1e30  # absolute value; below float32's 3.4e38, and the product of two below float64's 1.8e308


class Line(NamedTuple):
    """The query id, document id and score of one line of a run."""

    query: str
    document: str
    score: float


def read_run(
    path: Path, queries: Mapping[str, int], documents: Mapping[str, int], wanted: Sequence[int], depth: int
) -> RankedLists:
    """Return the top `depth` documents of the `wanted` query rows from a TREC run (`query Q0 document rank score tag`).

    Lists are ordered by score, ties by line number. White space in ids is percent-encoded, as in the runs written by
    this program, or the columns are separated by tabs. Raises DataError with all problems of the file.
    """
    faults = Faults()
    lists: dict[int, list[tuple[float, int, int]]] = {row: [] for row in wanted}
    seen: dict[tuple[int, int], int] = {}
    query_rows, document_rows = _with_trec_ids(queries), _with_trec_ids(documents)
    for number, text in read_lines(path, faults):
        location = f"{path}:{number}"
        line = _parse(text, location, faults) if text.strip() else None
        if line is None or not _is_known(line, query_rows, document_rows, location, faults):
            continue
        row, document = query_rows[line.query], document_rows[line.document]
        if (first := seen.setdefault((row, document), number)) != number:
            message = f"document {line.document!r} is listed for query {line.query!r} on line {first} already"
            faults.add("documents listed twice", location, f"{message}; keep one of them")
        elif row in lists:
            lists[row].append((-line.score, number, document))
    missing = [row for row, entries in lists.items() if not entries]
    if missing and not faults.kinds:
        names = {position: identity for identity, position in queries.items()}
        message = f"{len(missing)} judged queries have no line, e.g. {names[missing[0]]!r}"
        faults.add("queries not in the run", str(path), message)
    faults.stop()
    rows = np.full((len(wanted), depth), NOTHING, dtype=np.int32)
    scores = np.zeros((len(wanted), depth), dtype=np.float32)
    for index, row in enumerate(wanted):
        best = sorted(lists[row])[:depth]
        rows[index, : len(best)] = [document for _, _, document in best]
        scores[index, : len(best)] = [-negated for negated, _, _ in best]
    return RankedLists(rows, scores)


def _with_trec_ids(rows: Mapping[str, int]) -> dict[str, int]:
    """Return the rows by id and by the percent-encoded form of ids with white space."""
    return {trec_id(identity): row for identity, row in rows.items()} | dict(rows)


def _parse(text: str, location: str, faults: Faults) -> Line | None:
    """Return the fields of a line that is not blank; None, with a fault added, where it is malformed."""
    fields = trec_fields(text, 6)
    if len(fields) != 6:
        message = f"expected `query Q0 document rank score tag`, got {text.strip()[:60]!r}"
        faults.add("broken run lines", location, message)
        return None
    query, _, document, _, written, _ = fields
    try:
        score = float(written)
    except ValueError:
        score = math.nan
    if not abs(score) <= MAX_SCORE:
        size = "" if math.isnan(score) else f" of at most {MAX_SCORE:g} in size"
        faults.add("broken scores", location, f"the score is a number{size}, got {written!r}")
        return None
    return Line(query, document, score)


def _is_known(
    line: Line, queries: Mapping[str, int], documents: Mapping[str, int], location: str, faults: Faults
) -> bool:
    if line.document not in documents:
        faults.add("missing documents", location, f"document {line.document!r} is not in the corpus; use its ids")
    elif line.query not in queries:
        faults.add("missing queries", location, f"query {line.query!r} is not among the queries; use their ids")
    else:
        return True
    return False
