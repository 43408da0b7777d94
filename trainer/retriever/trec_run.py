"""The results of the user's own search engine as first stage: a TREC run, or a dict."""

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
    return _ranked([lists[row] for row in wanted], depth)


def ranking_of_dict(
    run: Mapping[str, Mapping[str, float]], query_ids: Sequence[str], document_ids: Sequence[str], wanted: Sequence[int]
) -> RankedLists:
    """Return the ranking of the `wanted` query rows from {query id: {document id: score}}; raises DataError.

    A query without results has an empty dict. Queries of other splits are allowed.
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
        message = f"{len(missing)} judged queries are missing, e.g. {query_ids[missing[0]]!r}; use {{}} for no results"
        faults.add("queries not in the run", "run", message)
    faults.stop()
    chosen = [lists[row] for row in wanted]
    return _ranked(chosen, max(1, *map(len, chosen)) if chosen else 1)


def _checked(
    scores: Mapping[str, float], documents: Mapping[str, int], place: str, faults: Faults
) -> list[tuple[float, int, int]]:
    """Return (negated score, position, document row) of each valid document; invalid ones are added to the faults."""
    found = []
    for position, (given, score) in enumerate(scores.items()):
        here, document = f"{place}[{given!r}]", documents.get(str(given).strip())
        if document is None:
            faults.add("missing documents", here, "this document is not in the collection; use its ids")
        elif not isinstance(score, int | float | np.number) or not abs(score) <= MAX_SCORE:
            faults.add(
                "broken scores", here, f"the score is a number of at most {MAX_SCORE:g} in size, got {score!r:.60}"
            )
        else:
            found.append((-float(score), position, document))
    return found


def _ranked(lists: Sequence[list[tuple[float, int, int]]], depth: int) -> RankedLists:
    """Return lists of (negated score, position, document row) as a ranking, ordered by score and then position."""
    rows = np.full((len(lists), depth), NOTHING, dtype=np.int32)
    scores = np.zeros((len(lists), depth), dtype=np.float32)
    for place, found in enumerate(lists):
        best = sorted(found)[:depth]
        rows[place, : len(best)] = [document for _, _, document in best]
        scores[place, : len(best)] = [-negated for negated, _, _ in best]
    return RankedLists(rows, scores)


def _with_trec_ids(rows: Mapping[str, int]) -> dict[str, int]:
    """Return the rows by id and by the percent-encoded form of ids with white space."""
    return {trec_id(identity): row for identity, row in rows.items()} | dict(rows)


def _parse(text: str, location: str, faults: Faults) -> Line | None:
    """Return the fields of a line that is not blank; None, with a fault added, if it is malformed."""
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
