"""What a collection is made of: documents, queries and judgements by split."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import quote

SPLITS = ("train", "dev", "test")
Judged = dict[str, dict[str, int]]  # {query id: {document id: grade}}
Qrels = dict[str, Judged]  # by split


class Record(NamedTuple):
    """A document or a query (which has no title)."""

    id: str
    title: str
    text: str

    @property
    def passage(self) -> str:
        """What models read: title and text."""
        return f"{self.title} {self.text}".strip()


class Judgement(NamedTuple):
    """One line of qrels; grade 0 says that somebody looked and found the document not relevant."""

    query: str
    document: str
    grade: int


def normalised(query: str) -> str:
    """Return a text in the form in which equal ones are found: in lower case, with single blanks."""
    return " ".join(query.lower().split())


def has_positive(grades: Mapping[Any, int], relevant_from: int) -> bool:
    """Whether a query can be measured or learned from."""
    return any(grade >= relevant_from for grade in grades.values())


_BLANK = re.compile(r"[\s%]")


def trec_id(identity: str) -> str:
    """Return an id as run files spell it, where white space separates the columns.

    Without white space that is the id itself; else white space and percent signs are percent-encoded.
    """
    if identity.split() == [identity]:
        return identity
    return _BLANK.sub(lambda match: quote(match[0]), identity)
