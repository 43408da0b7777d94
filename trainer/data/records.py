"""What a collection is made of: documents, queries and judgements by split."""

from __future__ import annotations

from typing import NamedTuple

SPLITS = ("train", "dev", "test")


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
