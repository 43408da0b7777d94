"""Which column is which: the names that the recipe gives, else the usual ones."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from trainer.data.faults import Faults
from trainer.data.tables import COLUMNS, Choose, Table
from trainer.errors import did_you_mean
from trainer.recipe import Data

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
    "pairs_query": ("query", "question", "anchor", "sentence1"),
    "pairs_positive": ("positive", "pos", "positives", "answer", "document", "passage", "sentence2"),
    "pairs_negatives": ("negative", "neg", "negatives"),
}
OPTIONAL = ("corpus_title", "pairs_negatives")
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
    """The `choose` of a table: fills `chosen` with the columns of the roles, or notes what is missing."""

    def choose(columns: Sequence[str]) -> list[str] | None:
        before = len(faults.kinds.get(COLUMNS, ()))
        if fault := _no_name(columns):
            faults.add(COLUMNS, table.name, fault)
        for role in roles:
            given = getattr(section, role)
            names = (given,) if isinstance(given, str) else given
            chosen[role] = names or usual(role, columns)
            for name in names or ():
                if name not in columns:
                    faults.add(COLUMNS, table.name, _no_such(role, name, columns))
            if not chosen[role]:
                faults.add(COLUMNS, table.name, _none_usual(role, columns))
        if roles == PAIRS_ROLES and not section.pairs_positive and (fault := _labelled(columns)):
            faults.add(COLUMNS, table.name, fault)
        failed = len(faults.kinds.get(COLUMNS, ())) > before
        return None if failed else [name for names in chosen.values() for name in names]

    return choose


CORPUS_ROLES = ("corpus_id", "corpus_title", "corpus_text")
QUERIES_ROLES = ("query_id", "query_text")
QRELS_ROLES = ("qrels_query", "qrels_document", "qrels_grade")
PAIRS_ROLES = ("pairs_query", "pairs_positive", "pairs_negatives")


def usual(role: str, columns: Sequence[str]) -> tuple[str, ...]:
    """The first usual name that is there (of negatives: all); empty where there is none and the role needs one.

    Keys of JSON lines may be missing in the first object and stand in later ones, so what is optional keeps its
    usual names.
    """
    known = {name.lower(): name for name in reversed(columns)}
    found = [known[name] for name in USUAL[role] if name in known]
    if role == "pairs_negatives":
        found += [name for name in columns if NUMBERED.fullmatch(name.lower())]
        return tuple(found) or USUAL[role]
    return tuple(found[:1]) or (USUAL[role] if role in OPTIONAL else ())


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
    return (
        f"no column for the {WHAT[role]}; columns here: {shown(columns)}; "
        f"name it with data.{role} (tried: {', '.join(USUAL[role])})"
    )


def _labelled(columns: Sequence[str]) -> str:
    """Pairs with a label hold pairs that do not match, which must not be learned as matches."""
    labels = usual("qrels_grade", columns)
    return (
        f"column {labels[0]!r} seems to say how well a pair matches, but every pair counts as relevant; keep the "
        "matching ones (others as negatives), and name the column of the relevant text with data.pairs_positive"
        if labels
        else ""
    )


def settings(section: Data) -> Mapping[str, object]:
    """The recipe's column keys, as far as they are given."""
    return {role: getattr(section, role) for role in USUAL if getattr(section, role) is not None}
