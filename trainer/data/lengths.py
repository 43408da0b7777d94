"""How much of the texts the reranker will not read, without loading a model.

Characters are counted in every text. Tokens are counted in a sample, which tells how many tokens a character makes in
texts of about that length, and in the longest texts.
"""

from __future__ import annotations

import heapq
import math
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

SAMPLE = 100  # texts whose tokens are counted; the check stays a matter of a second
POINTS = 1000  # quantiles of the lengths in characters, so that a share is known to a thousandth
SPECIAL = 3  # [CLS] query [SEP] document [SEP]
ALIKE = 20  # texts of the sample, nearest in characters, whose tokens a character a length is multiplied by
COVERED = 0.9  # share of the pairs that `reranker.max_length: auto` reads whole
SHORTEST = 32  # tokens, as few as a pair of a sentence each has
LONGEST_BY_ITSELF = 512  # tokens, above which a pair is only read where the recipe asks for it: time and memory grow
TOKENISED = 100_000  # characters of the longest texts together; of a text that is longer, the tokens are extrapolated


@dataclass(frozen=True)
class Lengths:
    """Lengths of many texts."""

    count: int
    texts: list[str]  # a sample
    characters: list[int]  # sorted: of every text, or quantiles where they are many
    longest_texts: list[str]  # the longest in characters; the first is cut where it is huge


class Cut(NamedTuple):
    """Shares of the texts that the reranker reads only in part, and a line that says so."""

    documents: float
    queries: float
    said: str


class LengthCounter:
    """Counts the characters of texts that stream by and keeps the longest ones and a sample.

    The sample are the lowest checksums of place and text, so the same each time.
    """

    def __init__(self) -> None:
        self._sample: list[tuple[int, int, str]] = []
        self._longest: list[tuple[int, int, str]] = []
        self._characters = array("L")

    def add(self, text: str) -> None:
        """Count the next text."""
        number = len(self._characters)
        self._characters.append(len(text))
        _keep(self._sample, (-crc32(text.encode(), number), number, text))
        _keep(self._longest, (len(text), -number, text[:TOKENISED]))

    def lengths(self) -> Lengths:
        """Return what was counted."""
        lengths = sorted(self._characters)
        if len(lengths) > POINTS:
            lengths = [lengths[round(place * (len(lengths) - 1) / POINTS)] for place in range(POINTS + 1)]
        return Lengths(len(self._characters), [text for _, _, text in self._sample], lengths, self._longest_texts())

    def _longest_texts(self) -> list[str]:
        """Return the longest texts, longest first: as many as have TOKENISED characters together, one at least."""
        texts: list[str] = []
        room = TOKENISED
        for _, _, text in sorted(self._longest, reverse=True):
            room -= len(text)
            if room < 0:
                break
            texts.append(text)
        return texts


def _keep(heap: list[tuple[int, int, str]], entry: tuple[int, int, str]) -> None:
    """Add an entry to a heap of the SAMPLE largest."""
    if len(heap) < SAMPLE:
        heapq.heappush(heap, entry)
    elif entry > heap[0]:
        heapq.heapreplace(heap, entry)


def covering_length(pairs: Sequence[int], longest: int) -> int:
    """Return the tokens, a multiple of 8, that nine of ten pairs of these lengths have at most.

    They are no more than the `longest` that the model reads, and no more than 512.
    """
    lengths = sorted(pairs)
    wanted = lengths[math.ceil(COVERED * len(lengths)) - 1]
    return min(max(wanted, SHORTEST) + -max(wanted, SHORTEST) % 8, longest, LONGEST_BY_ITSELF)


def describe_lengths(
    documents: Lengths, queries: Lengths, tokenizer: Path, max_length: int | None, most: int = LONGEST_BY_ITSELF
) -> Cut:
    """Return the shares of documents and queries of which the reranker reads only the beginning.

    A pair is cut at `max_length` tokens, the longer text first: a document is cut where it is longer than what the
    median query leaves, a query where it is longer than half of the room. Where `max_length` is None it is chosen from
    the lengths, up to the `most` that the model reads.
    """
    from tokenizers import Tokenizer

    backend = Tokenizer.from_file(str(tokenizer))
    backend.no_truncation()
    backend.no_padding()

    def tokens(texts: Sequence[str]) -> list[int]:
        return [len(encoded) for encoded in backend.encode_batch(list(texts), add_special_tokens=False)]

    sample = tokens(documents.texts)
    asked, read = _in_tokens(queries, tokens(queries.texts)), _in_tokens(documents, sample)
    longest, characters = _longest(documents, sample, tokens(documents.longest_texts))
    auto = "" if max_length else ": auto"
    max_length = max_length or covering_length([length + _median(asked) + SPECIAL for length in read], most)
    room = max_length - SPECIAL
    left = max(room - _median(asked), room // 2)
    long_documents = sum(length > left for length in read) / len(read)
    long_queries = sum(length > room // 2 for length in asked) / len(asked)
    about, least = ("", "") if documents.count <= SAMPLE else ("about ", "at least ")
    said = (
        f"{about}{long_documents:.0%} of {documents.count} documents are longer than the {left} tokens that the "
        f"median query leaves of {max_length} (reranker.max_length{auto}) and are cut; {long_queries:.0%} of the "
        f"queries are; median document {_median(read)} tokens, longest {least}{longest} ({characters:,} characters)"
    )
    return Cut(long_documents, long_queries, said)


def _in_tokens(lengths: Lengths, counted: Sequence[int]) -> list[int]:
    """Return lengths in tokens: those counted where the sample holds every text, else estimated from the characters.

    Texts of one length in characters differ in tokens, so each length is multiplied by the tokens a character of the
    ALIKE sampled texts whose length is nearest. With one mean for all, the share of runbooks' documents over 108 tokens
    came to 5 % instead of 20 %.
    """
    if lengths.count <= SAMPLE:
        return list(counted)
    sample = sorted(zip(map(len, lengths.texts), counted, strict=True), key=lambda text: text[0])  # not by tokens
    sizes = [characters for characters, _ in sample]
    rates = [tokens / max(1, characters) for characters, tokens in sample]
    estimated: list[int] = []
    for characters in lengths.characters:
        middle = (bisect_left(sizes, characters) + bisect_right(sizes, characters)) // 2
        first = min(max(middle - ALIKE // 2, 0), len(sample) - ALIKE)
        estimated += [round(characters * rate) for rate in rates[first : first + ALIKE]]
    return estimated


def _longest(lengths: Lengths, sample: Sequence[int], longest: Sequence[int]) -> tuple[int, int]:
    """Return tokens and characters of the text with most tokens, of the sample and the longest in characters.

    A text of fewer characters may have more tokens, so with many texts the tokens are a lower bound.
    """
    counted = [(tokens, len(text)) for tokens, text in zip(sample, lengths.texts, strict=True)]
    if lengths.count > SAMPLE:
        counted += [(tokens, len(text)) for tokens, text in zip(longest, lengths.longest_texts, strict=True)]
        tokens, read = longest[0], len(lengths.longest_texts[0])
        counted.append((round(tokens * lengths.characters[-1] / max(1, read)), lengths.characters[-1]))
    return max(counted)


def _median(lengths: Sequence[int]) -> int:
    return sorted(lengths)[len(lengths) // 2]
