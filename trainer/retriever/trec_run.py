"""The user's own search engine as first stage: its TREC run, or the same as a dict."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from trainer.data import Faults, read_lines, trec_fields, trec_id
from trainer.retriever.candidates import NOTHING, Ranking

HIGHEST = 1e30  # size of a score; products of two are still far from what float64 holds, and each from float32's 3.4e38


class Line(NamedTuple):
    """What counts of one line of a run."""

    query: str
    document: str
    score: float


def read_run(
    path: Path, queries: Mapping[str, int], documents: Mapping[str, int], wanted: Sequence[int], depth: int
) -> Ranking:
    """Read the user's TREC run (`query Q0 document rank score tag`) for the `wanted` query rows; raises DataError.

    The score decides the order, and of equal ones the line. White space in ids is percent-encoded as in the runs that
    are written here, or the columns are separated by tabs.
    """
    faults = Faults()
    lists: dict[int, list[tuple[float, int, int]]] = {row: [] for row in wanted}
    seen: dict[tuple[int, int], int] = {}
    query_rows, document_rows = _with_trec_ids(queries), _with_trec_ids(documents)
    for number, text in read_lines(path, faults):
        place = f"{path}:{number}"
        line = _parse(text, place, faults) if text.strip() else None
        if line is None or not _is_known(line, query_rows, document_rows, place, faults):
            continue
        row, document = query_rows[line.query], document_rows[line.document]
        if (first := seen.setdefault((row, document), number)) != number:
            message = f"document {line.document!r} is listed for query {line.query!r} on line {first} already"
            faults.add("documents listed twice", place, f"{message}; keep one of them")
        elif row in lists:
            lists[row].append((-line.score, number, document))
    missing = [row for row, found in lists.items() if not found]
    if missing and not faults.kinds:
        names = {position: identity for identity, position in queries.items()}
        message = f"{len(missing)} judged queries have no line, e.g. {names[missing[0]]!r}"
        faults.add("queries not in the run", str(path), message)
    faults.stop()
    return _ranking([lists[row] for row in wanted], depth)


def ranking_of_dict(
    run: Mapping[str, Mapping[str, float]], query_ids: Sequence[str], document_ids: Sequence[str], wanted: Sequence[int]
) -> Ranking:
    """Return the ranking of the `wanted` query rows from {query id: {document id: score}}; raises DataError.

    A query for which nothing was found has an empty dict; queries of other splits may be there too.
    """
    faults = Faults()
    queries, documents = ({identity: row for row, identity in enumerate(ids)} for ids in (query_ids, document_ids))
    lists: dict[int, list[tuple[float, int, int]]] = {}
    for given, scores in run.items():
        place, query = f"run[{given!r}]", str(given).strip()
        if query not in queries:
            faults.add("missing queries", place, "this query is not in the collection; use its ids")
        elif not isinstance(scores, Mapping):
            faults.add("broken lists", place, f"must be {{document id: score}}, got {scores!r:.60}")
        else:
            lists[queries[query]] = _checked(scores, documents, place, faults)
    missing = [row for row in wanted if row not in lists]
    if missing and not faults.kinds:
        message = f"{len(missing)} judged queries are missing, e.g. {query_ids[missing[0]]!r}; give {{}} for no answer"
        faults.add("queries not in the run", "run", message)
    faults.stop()
    chosen = [lists[row] for row in wanted]
    return _ranking(chosen, max(1, *map(len, chosen)) if chosen else 1)


def _checked(
    scores: Mapping[str, float], documents: Mapping[str, int], place: str, faults: Faults
) -> list[tuple[float, int, int]]:
    """Return (negated score, position, document row) of each document, without those that are noted as faults."""
    found = []
    for position, (given, score) in enumerate(scores.items()):
        here, document = f"{place}[{given!r}]", documents.get(str(given).strip())
        if document is None:
            faults.add("missing documents", here, "this document is not in the collection; use its ids")
        elif not isinstance(score, int | float | np.number) or not abs(score) <= HIGHEST:
            faults.add(
                "broken scores", here, f"the score is a number of at most {HIGHEST:g} in size, got {score!r:.60}"
            )
        else:
            found.append((-float(score), position, document))
    return found


def _ranking(lists: Sequence[list[tuple[float, int, int]]], depth: int) -> Ranking:
    """Return lists of (negated score, position, document row) as a ranking, ordered by score and then position."""
    rows = np.full((len(lists), depth), NOTHING, dtype=np.int32)
    scores = np.zeros((len(lists), depth), dtype=np.float32)
    for place, found in enumerate(lists):
        best = sorted(found)[:depth]
        rows[place, : len(best)] = [document for _, _, document in best]
        scores[place, : len(best)] = [-negated for negated, _, _ in best]
    return Ranking(rows, scores)


def _with_trec_ids(rows: Mapping[str, int]) -> dict[str, int]:
    """Rows by id, also by the form that ids with white space have in runs."""
    return {trec_id(identity): row for identity, row in rows.items()} | dict(rows)


def _parse(text: str, place: str, faults: Faults) -> Line | None:
    """One line that is not blank; None after a fault."""
    fields = trec_fields(text, 6)
    if len(fields) != 6:
        message = f"expected `query Q0 document rank score tag`, got {text.strip()[:60]!r}"
        faults.add("broken run lines", place, message)
        return None
    query, _, document, _, written, _ = fields
    try:
        score = float(written)
    except ValueError:
        score = math.nan
    if not abs(score) <= HIGHEST:
        size = "" if math.isnan(score) else f" of at most {HIGHEST:g} in size"
        faults.add("broken scores", place, f"the score is a number{size}, got {written!r}")
        return None
    return Line(query, document, score)


def _is_known(line: Line, queries: Mapping[str, int], documents: Mapping[str, int], place: str, faults: Faults) -> bool:
    if line.document not in documents:
        faults.add("missing documents", place, f"document {line.document!r} is not in the corpus; use its ids")
    elif line.query not in queries:
        faults.add("missing queries", place, f"query {line.query!r} is not among the queries; use their ids")
    else:
        return True
    return False
