"""The columns of each role: those that the recipe names, else columns with usual names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from trainer.data.faults import Faults
from trainer.data.tables import COLUMNS, SEPARATORS, Choose, Table
from trainer.errors import did_you_mean
from trainer.recipe import CLICKS, READING, Data

IDS = ("_id", "id")
DOCUMENT = ("corpus-id", "corpus_id", "docid", "doc_id", "docno", "did", "pid", "document_id", "passage_id", "document")
QUERY = ("query-id", "query_id", "qid", "topic")
USUAL_NAMES = {
    "corpus_id": (*IDS, *DOCUMENT[:-1]),
    "corpus_title": ("title",),
    "corpus_text": ("text", "body", "content", "contents", "passage", "document", "document_text"),
    "query_id": (*IDS, *QUERY),
    "query_text": ("text", "query", "question", "query_text"),
    "qrels_query": (*QUERY, "query"),
    "qrels_document": DOCUMENT,
    "qrels_grade": ("score", "grade", "relevance", "label", "rel"),
    "clicks_query": (*QUERY, "query"),
    "clicks_document": DOCUMENT,
    "clicks_count": ("clicks", "click", "clicked", "num_clicks", "n_clicks"),
    "clicks_impressions": ("impressions", "impression", "shown", "views", "num_impressions", "n_impressions"),
    "clicks_position": ("position", "pos", "rank"),
    "pairs_query": ("query", "question", "anchor", "sentence1", "messages"),
    "pairs_positive": (
        *("positive", "pos", "positives", "positive_passages", "positive_messages", "positive_ctxs", "answer"),
        *("document", "passage", "sentence2", "docs", "documents", "passages", "text"),
    ),
    "pairs_negatives": (
        *("negative", "neg", "negatives", "negative_passages", "negative_messages"),
        *("negative_ctxs", "hard_negative_ctxs"),
    ),
    "pairs_label": ("label", "labels", "score", "grade", "relevance", "rel"),
}
OPTIONAL_ROLES = ("corpus_title", "clicks_impressions", "clicks_position", "pairs_negatives", "pairs_label")
MULTI_COLUMN_ROLES = ("corpus_text", "pairs_negatives")  # roles that several columns can have at once
NUMBERED = re.compile(r"(negative|neg)_?\d+")
ROLE_NAMES = {
    "corpus_id": "document id",
    "corpus_text": "document's text",
    "query_id": "query id",
    "query_text": "query's text",
    "qrels_query": "query id",
    "qrels_document": "document id",
    "qrels_grade": "grade",
    "clicks_query": "query id",
    "clicks_document": "document id",
    "clicks_count": "number of clicks",
    "pairs_query": "query's text",
    "pairs_positive": "relevant text",
}
Chosen = dict[str, tuple[str, ...]]  # columns by role, which is the recipe's key


def chooser(table: Table, section: Data, roles: Sequence[str], chosen: Chosen, faults: Faults) -> Choose:
    """Return the `choose` callback of a table, which fills `chosen` with the columns of the roles.

    It adds missing columns to `faults`.
    """

    def choose(columns: Sequence[str]) -> list[str] | None:
        before = len(faults.kinds.get(COLUMNS, ()))
        if problem := _bad_name(columns):
            faults.add(COLUMNS, table.name, problem)
        for role in roles:
            given = getattr(section, role)
            names = (given,) if isinstance(given, str) else given
            if role == "pairs_label" and not names and section.pairs_positive:
                names = ()  # a column that the recipe names as positive needs no label
            chosen[role] = usual(role, columns) if names is None else _named(role, names, columns)
            for problem in _missing(role, names or (), chosen[role], columns):
                faults.add(COLUMNS, table.name, problem)
        failed = len(faults.kinds.get(COLUMNS, ())) > before
        return None if failed else [name for names in chosen.values() for name in names]

    return choose


CORPUS_ROLES = ("corpus_id", "corpus_title", "corpus_text")
QUERIES_ROLES = ("query_id", "query_text")
QRELS_ROLES = ("qrels_query", "qrels_document", "qrels_grade")
CLICKS_ROLES = ("clicks_query", "clicks_document", "clicks_count", "clicks_impressions", "clicks_position")
PAIRS_ROLES = ("pairs_query", "pairs_positive", "pairs_negatives", "pairs_label")


def _named(role: str, names: Sequence[str], columns: Sequence[str]) -> tuple[str, ...]:
    """Return those of the recipe's columns that a table has: all of them, or the first if the role takes one."""
    existing = tuple(name for name in names if name in columns)
    return existing if role in MULTI_COLUMN_ROLES else existing[:1]


def _missing(role: str, names: Sequence[str], chosen: Sequence[str], columns: Sequence[str]) -> list[str]:
    """Return a message for each missing column of one role."""
    if role in MULTI_COLUMN_ROLES and names:
        return [_no_such(role, name, columns) for name in names if name not in columns]
    if names and not chosen:
        return [_no_such(role, name, columns) for name in names[:1]]
    return [] if chosen or role in OPTIONAL_ROLES else [_none_usual(role, columns)]


def usual(role: str, columns: Sequence[str]) -> tuple[str, ...]:
    """Return the first column with a usual name (for negatives: all of them), empty if there is none.

    Case and punctuation are ignored. Keys of JSON lines may be missing in the first object and present in later ones,
    so titles and negatives get their usual names if there is no such column.
    """
    known = {_loose(name): name for name in reversed(columns)} | {name.lower(): name for name in reversed(columns)}
    matches = [known.get(name) or known.get(_loose(name)) for name in USUAL_NAMES[role]]
    names = list(dict.fromkeys(filter(None, matches)))
    if role == "pairs_negatives":
        names += [name for name in columns if NUMBERED.fullmatch(name.lower()) and name not in names]
        return tuple(names) or USUAL_NAMES[role]
    return tuple(names[:1]) or (USUAL_NAMES[role] if role == "corpus_title" else ())


def _loose(name: str) -> str:
    return re.sub(r"[\W_]+", "-", name.lower()).strip("-")


def shown(columns: Sequence[str]) -> str:
    """Return a list of columns for a message, shortened if it is long."""
    return ", ".join(name[:40] for name in columns[:12]) + (", ..." if len(columns) > 12 else "")


def _bad_name(columns: Sequence[str]) -> str:
    if "" in columns:
        return f"column {list(columns).index('') + 1} has no name; name it or remove it"
    repeated = [name for index, name in enumerate(columns) if name in columns[:index]]
    return f"column {repeated[0]!r} appears twice; rename one of them" if repeated else ""


def _no_such(role: str, name: str, columns: Sequence[str]) -> str:
    near = did_you_mean(name, columns)
    near = near if near.startswith("; did") else ""
    return f"no column {name!r}, which data.{role} names; columns here: {shown(columns)}{near}"


def _none_usual(role: str, columns: Sequence[str]) -> str:
    separator = next((mark for mark in SEPARATORS if any(mark in name for name in columns)), None)
    hint = f"; if {separator!r} separates the fields, set data.separator" if separator else ""
    return (
        f"no column for the {ROLE_NAMES[role]}; columns here: {shown(columns)}; "
        f"name it with data.{role} (tried: {', '.join(USUAL_NAMES[role])}){hint or _missing_header(columns)}"
    )


def _missing_header(columns: Sequence[str]) -> str:
    return (
        "; if the first line is not a header, add one above it"
        if any(" " in name or name.isdigit() for name in columns)
        else ""
    )


def settings(section: Data) -> Mapping[str, object]:
    """Return the recipe's keys for the reading of files that differ from their defaults."""
    keys = [*USUAL_NAMES, *CLICKS, *(key for key in READING if key != "judgements")]
    fields = type(section).model_fields
    return {key: value for key in keys if (value := getattr(section, key)) != fields[key].default}
