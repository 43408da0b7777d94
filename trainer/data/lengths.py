"""How much of the texts the reranker will not read, without loading a model.

Characters are counted in every text; tokens are counted in a sample, which says how many characters a token has.
"""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

SAMPLE = 100  # texts whose tokens are counted; the check stays a matter of a second
POINTS = 1000  # quantiles of the lengths in characters, so that a share is known to a thousandth
SPECIAL = 3  # [CLS] query [SEP] document [SEP]
TOKENISED = 100_000  # characters of the longest text; of what is longer, the tokens are extrapolated


@dataclass(frozen=True)
class Lengths:
    """Lengths of many texts."""

    count: int
    texts: list[str]  # a sample
    characters: list[int]  # sorted: of every text, or quantiles where they are many
    longest: str  # its first characters


class Cut(NamedTuple):
    """Shares of the texts that the reranker reads only in part, and a line that says so."""

    documents: float
    queries: float
    said: str


class LengthCounter:
    """Counts the characters of texts that stream by and keeps a sample: the lowest checksums, so the same each time."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, str]] = []
        self._characters = array("L")
        self._longest = ""
        self._most = 0

    def add(self, text: str) -> None:
        """Count the next text."""
        entry = (-crc32(text.encode()), len(self._characters), text)
        self._characters.append(len(text))
        if len(text) > self._most:
            self._most, self._longest = len(text), text[:TOKENISED]
        if len(self._heap) < SAMPLE:
            heapq.heappush(self._heap, entry)
        elif entry > self._heap[0]:
            heapq.heapreplace(self._heap, entry)

    def lengths(self) -> Lengths:
        """Return what was counted."""
        lengths = sorted(self._characters)
        if len(lengths) > POINTS:
            lengths = [lengths[round(place * (len(lengths) - 1) / POINTS)] for place in range(POINTS + 1)]
        return Lengths(len(self._characters), [text for _, _, text in self._heap], lengths, self._longest)


def describe_lengths(documents: Lengths, queries: Lengths, tokenizer: Path, max_length: int) -> Cut:
    """Return the shares of documents and queries of which the reranker reads only the beginning.

    A pair is cut at `max_length` tokens, the longer text first: a document is cut where it is longer than what the
    median query leaves, a query where it is longer than half of the room.
    """
    from tokenizers import Tokenizer

    backend = Tokenizer.from_file(str(tokenizer))
    backend.no_truncation()
    backend.no_padding()

    def tokens(texts: Sequence[str]) -> list[int]:
        return [len(encoded) for encoded in backend.encode_batch(list(texts), add_special_tokens=False)]

    asked, read = _in_tokens(queries, tokens(queries.texts)), _in_tokens(documents, tokens(documents.texts))
    (longest,) = tokens([documents.longest])
    longest = round(longest * documents.characters[-1] / max(1, len(documents.longest)))
    room = max_length - SPECIAL
    left = max(room - _median(asked), room // 2)
    long_documents = sum(length > left for length in read) / len(read)
    long_queries = sum(length > room // 2 for length in asked) / len(asked)
    about = "" if documents.count <= SAMPLE else "about "
    said = (
        f"{about}{long_documents:.0%} of {documents.count} documents are longer than the {left} tokens that the "
        f"median query leaves of {max_length} (reranker.max_length) and are cut; {long_queries:.0%} of the queries "
        f"are; median document {_median(read)} tokens, longest {longest} ({documents.characters[-1]:,} characters)"
    )
    return Cut(long_documents, long_queries, said)


def _in_tokens(lengths: Lengths, counted: Sequence[int]) -> list[int]:
    """Lengths in tokens: counted where the sample holds every text, else the characters by the sample's rate."""
    if lengths.count <= SAMPLE:
        return list(counted)
    rate = sum(counted) / max(1, sum(map(len, lengths.texts)))
    return [round(length * rate) for length in lengths.characters]


def _median(lengths: Sequence[int]) -> int:
    return sorted(lengths)[len(lengths) // 2]
