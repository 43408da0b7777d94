"""The records of a collection: documents, queries and judgements by split."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import quote

SPLITS = ("train", "dev", "test")
Qrels = dict[str, dict[str, int]]  # {query id: {document id: grade}}
SplitQrels = dict[str, Qrels]  # by split


class Record(NamedTuple):
    """A document or a query (which has no title)."""

    id: str
    title: str
    text: str

    @property
    def passage(self) -> str:
        """Title and text, which are the input of models."""
        return f"{self.title} {self.text}".strip()


class Judgement(NamedTuple):
    """One line of qrels; grade 0 means that the document was judged as not relevant."""

    query: str
    document: str
    grade: int


def normalised(query: str) -> str:
    """Return a text in the form in which texts are compared: lower case, single blanks."""
    return " ".join(query.lower().split())


def has_positive(grades: Mapping[Any, int], relevant_from: int) -> bool:
    """Return True if a query has a relevant document, without which it can neither be measured nor trained on."""
    return any(grade >= relevant_from for grade in grades.values())


_BLANK = re.compile(r"[\s%]")


def trec_id(identity: str) -> str:
    """Return an id as it is written in run files, in which white space separates the columns.

    White space and percent signs are percent-encoded in ids with white space; other ids are unchanged.
    """
    if identity.split() == [identity]:
        return identity
    return _BLANK.sub(lambda match: quote(match[0]), identity)
