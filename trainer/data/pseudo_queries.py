"""Pseudo-queries: titles, headings and sentences of the corpus that serve as unlabelled queries."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import NamedTuple

import numpy as np

from trainer.data.collection import Collection
from trainer.data.extracts import extracts

DOCUMENTS_AT_ONCE = 1000  # that are read together
_WORD = re.compile(r"\w+")


class PseudoQuery(NamedTuple):
    """A text that serves as a query, and the row of its document."""

    text: str
    document: int


def pseudo_queries(collection: Collection, wanted: int, seed: int) -> list[PseudoQuery]:
    """Return `wanted` titles, headings and sentences of randomly ordered documents, all different and no known queries.

    Every document gives one text before any document gives a second one. If the corpus is too small, there are fewer.
    """
    taken = {_words(text) for text in collection.queries["text"][:]} | {""}
    drawn: list[PseudoQuery] = []
    for query in _candidates(collection, seed):
        if len(drawn) == wanted:
            break
        if (words := _words(query.text)) not in taken:
            taken.add(words)
            drawn.append(query)
    return drawn


def _words(text: str) -> str:
    """Return the form of a text in which duplicates are recognised: lower case, without punctuation."""
    return " ".join(_WORD.findall(text.lower()))


def _candidates(collection: Collection, seed: int) -> Iterator[PseudoQuery]:
    """Yield the first text of every document in random order, then the second text of each that has one, and so on."""
    order = np.random.default_rng(seed).permutation(len(collection.documents))
    for turn in count():
        left = []
        for start in range(0, len(order), DOCUMENTS_AT_ONCE):
            rows = order[start : start + DOCUMENTS_AT_ONCE].tolist()
            documents = collection.documents.select(rows)
            for row, title, passage in zip(rows, documents["title"][:], documents["passage"][:], strict=True):
                texts = _texts(title, passage, np.random.default_rng([seed, row]))
                if turn < len(texts):
                    yield PseudoQuery(texts[turn], row)
                if turn + 1 < len(texts):
                    left.append(row)
        if not left:
            return
        order = np.array(left)


def _texts(title: str, passage: str, rng: np.random.Generator) -> list[str]:
    """Return a document's title and its other texts that could be queries, in random order.

    The title comes first or second, so that about as many titles as sentences are used.
    """
    found = extracts(title, passage)
    usable = [one.text for one in found if one.kind != "title"]
    texts = [usable[index] for index in rng.permutation(len(usable))]
    for heading in (one.text for one in found if one.kind == "title"):
        texts.insert(int(rng.integers(2)), heading)
    return texts


def add_queries(collection: Collection, queries: Sequence[PseudoQuery]) -> tuple[Collection, list[int]]:
    """Return the collection extended by the pseudo-queries, and their rows."""
    first = len(collection.queries)
    extended = collection.with_queries({f"pseudo-{index}": query.text for index, query in enumerate(queries)})
    return extended, list(range(first, first + len(queries)))


def write_queries(queries: Sequence[PseudoQuery], collection: Collection, path: Path) -> None:
    """Write one JSON line per pseudo-query, for people to read."""
    lines = [
        {"_id": f"pseudo-{index}", "text": query.text, "document_id": collection.document_ids[query.document]}
        for index, query in enumerate(queries)
    ]
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
