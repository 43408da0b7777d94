"""Pseudo-queries: titles and sentences of the corpus in place of queries, for a teacher to label."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import NamedTuple

import numpy as np

from trainer.data.collection import Collection

SENTENCE = range(16, 151)  # characters of a sentence that could be a query: three English words to twenty-five
TITLE = range(3, 151)  # a title may be a single word
LETTERS = 0.9  # share of letters, digits and blanks in a sentence; lines of code and tables have fewer
READ = 1000  # documents read at once
_END = re.compile(r"(?<=[.!?])\s+|(?<=[。!?])|\s*\n\s*")
_EDGES = " \t\"'`*#|<>-–•.,:;。"
_WORD = re.compile(r"\w+")


class PseudoQuery(NamedTuple):
    """A text of the corpus in place of a query, and the row of the document that it comes from."""

    text: str
    document: int


def pseudo_queries(collection: Collection, wanted: int, seed: int) -> list[PseudoQuery]:
    """Titles and sentences of documents drawn by seed, no two alike and none like a query of any split.

    Every document gives one before any gives a second; fewer than `wanted` where the corpus holds no more.
    """
    taken = {_words(text) for text in collection.queries["text"][:]} | {""}
    drawn: list[PseudoQuery] = []
    for query in _offers(collection, seed):
        if len(drawn) == wanted:
            break
        if (words := _words(query.text)) not in taken:
            taken.add(words)
            drawn.append(query)
    return drawn


def _words(text: str) -> str:
    """What is compared: a title is no new query for its capitals or a missing question mark."""
    return " ".join(_WORD.findall(text.lower()))


def _offers(collection: Collection, seed: int) -> Iterator[PseudoQuery]:
    """The first text of every document in an order drawn by seed, then the second of those that have one, and so on."""
    order = np.random.default_rng(seed).permutation(len(collection.documents))
    for turn in count():
        left = []
        for start in range(0, len(order), READ):
            rows = order[start : start + READ].tolist()
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
    """A document's title and sentences that could be queries, in the order in which they are taken.

    The title is the first or the second by chance, so that titles and sentences are learned from alike.
    """
    sentences = [sentence.strip(_EDGES) for sentence in _END.split(passage.removeprefix(title.strip()))]
    usable = [sentence for sentence in sentences if len(sentence) in SENTENCE and _is_prose(sentence)]
    texts = [usable[place] for place in rng.permutation(len(usable))]
    if len(title := " ".join(title.split())) in TITLE:
        texts.insert(int(rng.integers(2)), title)
    return texts


def _is_prose(text: str) -> bool:
    plain = sum(unicodedata.category(character)[0] in "LMNZ" for character in text)
    return plain >= LETTERS * len(text)


def add_queries(collection: Collection, queries: Sequence[PseudoQuery]) -> tuple[Collection, list[int]]:
    """The collection with the pseudo-queries, and their rows."""
    first = len(collection.queries)
    extended = collection.with_queries({f"pseudo-{place}": query.text for place, query in enumerate(queries)})
    return extended, list(range(first, first + len(queries)))


def write_queries(queries: Sequence[PseudoQuery], collection: Collection, path: Path) -> None:
    """One JSON line a pseudo-query, for people to look at."""
    lines = [
        {"_id": f"pseudo-{place}", "text": query.text, "document_id": collection.document_ids[query.document]}
        for place, query in enumerate(queries)
    ]
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
