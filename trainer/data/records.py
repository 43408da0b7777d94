"""What a collection is made of: documents, queries and judgements by split."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

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
    """A query's text by which it is known again, whatever its case and blanks."""
    return " ".join(query.lower().split())


def has_positive(grades: Mapping[str, int]) -> bool:
    """Whether a query can be measured or learned from."""
    return any(grade > 0 for grade in grades.values())
