"""Which column is which: the names that the recipe gives, else the usual ones."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from trainer.data.faults import Faults
from trainer.data.tables import COLUMNS, SEPARATORS, Choose, Table
from trainer.errors import did_you_mean
from trainer.recipe import READING, Data

IDS = ("_id", "id")
DOCUMENT = ("corpus-id", "corpus_id", "docid", "doc_id", "docno", "did", "pid", "document_id", "passage_id", "document")
QUERY = ("query-id", "query_id", "qid", "topic")
USUAL = {
    "corpus_id": (*IDS, *DOCUMENT[:-1]),
    "corpus_title": ("title",),
    "corpus_text": ("text", "body", "content", "contents", "passage", "document", "document_text"),
    "query_id": (*IDS, *QUERY),
    "query_text": ("text", "query", "question", "query_text"),
    "qrels_query": (*QUERY, "query"),
    "qrels_document": DOCUMENT,
    "qrels_grade": ("score", "grade", "relevance", "label", "rel"),
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
OPTIONAL = ("corpus_title", "pairs_negatives", "pairs_label")
SEVERAL = ("corpus_text", "pairs_negatives")  # roles that all named columns have together
NUMBERED = re.compile(r"(negative|neg)_?\d+")
WHAT = {
    "corpus_id": "document id",
    "corpus_text": "document's text",
    "query_id": "query id",
    "query_text": "query's text",
    "qrels_query": "query id",
    "qrels_document": "document id",
    "qrels_grade": "grade",
    "pairs_query": "query's text",
    "pairs_positive": "relevant text",
}
Chosen = dict[str, tuple[str, ...]]  # role, which is the recipe's key, to columns


def chooser(table: Table, section: Data, roles: Sequence[str], chosen: Chosen, faults: Faults) -> Choose:
    """Return the `choose` of a table, which fills `chosen` with the columns of the roles or notes what is missing."""

    def choose(columns: Sequence[str]) -> list[str] | None:
        before = len(faults.kinds.get(COLUMNS, ()))
        if fault := _no_name(columns):
            faults.add(COLUMNS, table.name, fault)
        for role in roles:
            given = getattr(section, role)
            names = (given,) if isinstance(given, str) else given
            if role == "pairs_label" and not names and section.pairs_positive:
                names = ()  # who names the column of the relevant text says that it is relevant
            chosen[role] = usual(role, columns) if names is None else _named(role, names, columns)
            for fault in _missing(role, names or (), chosen[role], columns):
                faults.add(COLUMNS, table.name, fault)
        failed = len(faults.kinds.get(COLUMNS, ())) > before
        return None if failed else [name for names in chosen.values() for name in names]

    return choose


CORPUS_ROLES = ("corpus_id", "corpus_title", "corpus_text")
QUERIES_ROLES = ("query_id", "query_text")
QRELS_ROLES = ("qrels_query", "qrels_document", "qrels_grade")
PAIRS_ROLES = ("pairs_query", "pairs_positive", "pairs_negatives", "pairs_label")


def _named(role: str, names: Sequence[str], columns: Sequence[str]) -> tuple[str, ...]:
    """Return those of the recipe's columns that a table has: all of them, or the first where one is wanted."""
    there = tuple(name for name in names if name in columns)
    return there if role in SEVERAL else there[:1]


def _missing(role: str, names: Sequence[str], found: Sequence[str], columns: Sequence[str]) -> list[str]:
    """Return what is wrong about the columns of one role."""
    if role in SEVERAL and names:
        return [_no_such(role, name, columns) for name in names if name not in columns]
    if names and not found:
        return [_no_such(role, name, columns) for name in names[:1]]
    return [] if found or role in OPTIONAL else [_none_usual(role, columns)]


def usual(role: str, columns: Sequence[str]) -> tuple[str, ...]:
    """Return the first usual name that is there (of negatives: all), empty where there is none.

    Case and punctuation make no difference. Keys of JSON lines may be missing in the first object and stand in later
    ones, so titles and negatives keep their usual names where none is there.
    """
    known = {_loose(name): name for name in reversed(columns)} | {name.lower(): name for name in reversed(columns)}
    found = [known.get(name) or known.get(_loose(name)) for name in USUAL[role]]
    names = list(dict.fromkeys(filter(None, found)))
    if role == "pairs_negatives":
        names += [name for name in columns if NUMBERED.fullmatch(name.lower()) and name not in names]
        return tuple(names) or USUAL[role]
    return tuple(names[:1]) or (USUAL[role] if role == "corpus_title" else ())


def _loose(name: str) -> str:
    return re.sub(r"[\W_]+", "-", name.lower()).strip("-")


def shown(columns: Sequence[str]) -> str:
    """The columns of a file for a message."""
    return ", ".join(name[:40] for name in columns[:12]) + (", ..." if len(columns) > 12 else "")


def _no_name(columns: Sequence[str]) -> str:
    if "" in columns:
        return f"column {list(columns).index('') + 1} has no name; name it or remove it"
    doubled = [name for place, name in enumerate(columns) if name in columns[:place]]
    return f"column {doubled[0]!r} stands twice; rename one of them" if doubled else ""


def _no_such(role: str, name: str, columns: Sequence[str]) -> str:
    near = did_you_mean(name, columns)
    near = near if near.startswith("; did") else ""
    return f"no column {name!r}, which data.{role} names; columns here: {shown(columns)}{near}"


def _none_usual(role: str, columns: Sequence[str]) -> str:
    mark = next((mark for mark in SEPARATORS if any(mark in name for name in columns)), None)
    hint = f"; if {mark!r} separates the fields, set data.separator" if mark else ""
    return (
        f"no column for the {WHAT[role]}; columns here: {shown(columns)}; "
        f"name it with data.{role} (tried: {', '.join(USUAL[role])}){hint or _no_head_line(columns)}"
    )


def _no_head_line(columns: Sequence[str]) -> str:
    return (
        "; if this is no head line, put one above it" if any(" " in name or name.isdigit() for name in columns) else ""
    )


def settings(section: Data) -> Mapping[str, object]:
    """Return the recipe's keys that decide how files are read, as far as they are given."""
    keys = [*USUAL, *(key for key in READING if key != "judgements")]
    fields = type(section).model_fields
    return {key: value for key in keys if (value := getattr(section, key)) != fields[key].default}
