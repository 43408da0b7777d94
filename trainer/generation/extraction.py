"""Queries without a language model: titles, headings, questions, docstrings and sentences of the documents.

A query is cut out of its document wherever models read or search it with made queries: a document that contains the
query word for word would be too easy to find, and a model trained on it would learn to look for copies.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

from trainer.data import Collection
from trainer.data.extracts import KINDS, Extract, extracts, without
from trainer.data.generated import MadeQuery
from trainer.generation.filters import words_of
from trainer.generation.sources import Source

FEWEST_LEFT = 12  # words of a document without its queries


def extract(collection: Collection, sources: Sequence[Source], count: int) -> list[MadeQuery]:
    """Return at most `count` texts of each document as queries, of as many kinds as it has.

    A document keeps at least twelve words besides them, so one of a single sentence gives none.
    """
    rows = collection.documents.select([source.document for source in sources])
    queries = []
    for source, title, passage in zip(sources, rows["title"][:], rows["passage"][:], strict=True):
        chosen: list[Extract] = []
        for part in _in_turn(extracts(title, passage), passage):
            enough = len(words_of(without(passage, [*chosen, part]))) >= FEWEST_LEFT
            if len(chosen) < count and enough and part.text not in [one.text for one in chosen]:
                chosen.append(part)
        queries += [MadeQuery(part.text, part.kind, *source) for part in chosen]
    return queries


def cut(collection: Collection, queries: Sequence[MadeQuery]) -> dict[int, str]:
    """Return {document row: its title and text without the queries that were taken from it}."""
    taken: dict[int, set[str]] = {}
    for query in queries:
        taken.setdefault(query.document, set()).add(query.text)
    rows = collection.documents.select(list(taken))
    return {
        document: without(passage, [part for part in extracts(title, passage) if part.text in texts])
        for (document, texts), title, passage in zip(taken.items(), rows["title"][:], rows["passage"][:], strict=True)
    }


def _in_turn(parts: Sequence[Extract], passage: str) -> Iterator[Extract]:
    """Yield one part of each kind, then a second one of each, in an order that depends on the document alone."""

    def digest(text: str) -> bytes:
        return hashlib.sha256(text.encode()).digest()

    turn = digest(passage)[0]
    by_kind = [
        sorted((part for part in parts if part.kind == kind), key=lambda part: digest(part.text))
        for kind in (*KINDS[turn % len(KINDS) :], *KINDS[: turn % len(KINDS)])
    ]
    for number in range(max(map(len, by_kind))):
        yield from (of_kind[number] for of_kind in by_kind if number < len(of_kind))
