"""Lengths of the texts in tokens, and the shares of texts that the reranker truncates, without loading a model.

Characters are counted in every text. Tokens are counted in the longest texts and in a sample, which gives the number of
tokens per character for texts of about the same length.
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

# Texts whose tokens are counted. With 100 of the runbooks' 368 documents the share over 108 tokens was estimated as
# 27 % instead of 20 %: many have about that length, and the sample's standard error is four points.
LENGTH_SAMPLE = 1000
SAMPLED_CHARACTERS = 1_000_000  # of the sample together, so that the check takes about a second
LEAST_SAMPLE = 100  # texts of the sample, however long they are
LONGEST = 100  # longest texts that are kept
QUANTILES = 1000  # of the lengths in characters, so that a share is known to a thousandth
SPECIAL_TOKENS = 3  # [CLS] query [SEP] document [SEP]
NEIGHBOURS = 5  # a length gets the tokens per character of the fifth of the sample with the nearest lengths
COVERAGE = 0.9  # share of the pairs that fit into `reranker.max_length: auto`
MIN_AUTO_LENGTH = 32  # tokens; a pair of two sentences has about as many
MAX_AUTO_LENGTH = 512  # tokens; more only if the recipe sets it, since time and memory grow
TOKENISED_CHARACTERS = 100_000  # of the longest texts together; the tokens of a longer text are extrapolated


@dataclass(frozen=True)
class Lengths:
    """Lengths of many texts."""

    count: int
    texts: list[str]  # a sample
    characters: list[int]  # sorted: of every text, or quantiles if there are many
    longest_texts: list[str]  # the longest in characters; the first is truncated if it is very long

    @property
    def is_complete(self) -> bool:
        """True if the sample holds every text."""
        return len(self.texts) == self.count


class Truncation(NamedTuple):
    """Shares of the texts that the reranker truncates, and a message about them."""

    documents: float
    queries: float
    message: str


class LengthCounter:
    """Counts the characters of texts that are added one by one, and keeps the longest ones and a sample.

    The sample consists of the texts with the lowest checksums, so it is the same each time.
    """

    def __init__(self) -> None:
        self._sample: list[tuple[int, int, str]] = []
        self._longest: list[tuple[int, int, str]] = []
        self._characters = array("L")

    def add(self, text: str) -> None:
        """Count the next text."""
        number = len(self._characters)
        self._characters.append(len(text))
        _push_largest(self._sample, (-crc32(text.encode(), number), number, text), LENGTH_SAMPLE)
        _push_largest(self._longest, (len(text), -number, text[:TOKENISED_CHARACTERS]), LONGEST)

    def lengths(self) -> Lengths:
        """Return the lengths of all texts so far."""
        lengths = sorted(self._characters)
        if len(lengths) > QUANTILES:
            lengths = [lengths[round(point * (len(lengths) - 1) / QUANTILES)] for point in range(QUANTILES + 1)]
        return Lengths(len(self._characters), self._sampled_texts(), lengths, self._longest_texts())

    def _sampled_texts(self) -> list[str]:
        """Return the sample up to SAMPLED_CHARACTERS characters, at least the first LEAST_SAMPLE, by checksum."""
        texts: list[str] = []
        left = SAMPLED_CHARACTERS
        for _, _, text in sorted(self._sample, reverse=True):
            left -= len(text)
            if left < 0 and len(texts) >= LEAST_SAMPLE:
                break
            texts.append(text)
        return texts

    def _longest_texts(self) -> list[str]:
        """Return the longest texts, longest first, up to TOKENISED_CHARACTERS characters together, at least one."""
        texts: list[str] = []
        left = TOKENISED_CHARACTERS
        for _, _, text in sorted(self._longest, reverse=True):
            left -= len(text)
            if left < 0:
                break
            texts.append(text)
        return texts


def _push_largest(heap: list[tuple[int, int, str]], entry: tuple[int, int, str], most: int) -> None:
    """Add an entry to a heap that keeps the `most` largest."""
    if len(heap) < most:
        heapq.heappush(heap, entry)
    elif entry > heap[0]:
        heapq.heapreplace(heap, entry)


def covering_length(pairs: Sequence[int], longest: int) -> int:
    """Return the length in tokens, a multiple of 8, that nine of ten pairs do not exceed.

    It is limited to `longest`, the model's limit, and to 512.
    """
    lengths = sorted(pairs)
    wanted = lengths[math.ceil(COVERAGE * len(lengths)) - 1]
    return min(max(wanted, MIN_AUTO_LENGTH) + -max(wanted, MIN_AUTO_LENGTH) % 8, longest, MAX_AUTO_LENGTH)


def describe_lengths(
    documents: Lengths, queries: Lengths, tokenizer: Path, max_length: int | None, most: int = MAX_AUTO_LENGTH
) -> Truncation:
    """Return the shares of documents and queries that the reranker truncates.

    A pair is truncated to `max_length` tokens, the longer text first: a document if it is longer than the median query
    leaves, a query if it is longer than half of the length. If `max_length` is None it is chosen from the lengths, up
    to `most`, the model's limit.
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
    max_length = max_length or covering_length([length + _median(asked) + SPECIAL_TOKENS for length in read], most)
    room = max_length - SPECIAL_TOKENS
    left = max(room - _median(asked), room // 2)
    long_documents = sum(length > left for length in read) / len(read)
    long_queries = sum(length > room // 2 for length in asked) / len(asked)
    about, least = ("", "") if documents.is_complete else ("about ", "at least ")
    message = (
        f"{about}{long_documents:.0%} of {documents.count} documents are longer than the {left} tokens that the "
        f"median query leaves of {max_length} (reranker.max_length{auto}) and are truncated; {long_queries:.0%} of "
        f"the queries are; median document {_median(read)} tokens, longest {least}{longest} ({characters:,} characters)"
    )
    return Truncation(long_documents, long_queries, message)


def _in_tokens(lengths: Lengths, counted: Sequence[int]) -> list[int]:
    """Return lengths in tokens: the counted ones if the sample holds every text, else estimates from the characters.

    Texts of one length in characters differ in tokens, so each length is multiplied by the tokens per character of each
    of the sampled texts of the nearest lengths. With one mean for all texts, the share of documents over 108
    tokens was estimated as 5 % instead of 20 % for runbooks.
    """
    if lengths.is_complete:
        return list(counted)
    sample = sorted(zip(map(len, lengths.texts), counted, strict=True), key=lambda text: text[0])  # not by tokens
    sizes = [characters for characters, _ in sample]
    rates = [tokens / max(1, characters) for characters, tokens in sample]
    count, estimated = max(1, len(sample) // NEIGHBOURS), list[int]()
    for characters in lengths.characters:
        middle = (bisect_left(sizes, characters) + bisect_right(sizes, characters)) // 2
        first = min(max(middle - count // 2, 0), len(sample) - count)
        estimated += [round(characters * rate) for rate in rates[first : first + count]]
    return estimated


def _longest(lengths: Lengths, sample: Sequence[int], longest: Sequence[int]) -> tuple[int, int]:
    """Return tokens and characters of the text with most tokens, among the sample and the longest texts.

    A text with fewer characters may have more tokens, so with many texts the tokens are a lower bound.
    """
    counted = [(tokens, len(text)) for tokens, text in zip(sample, lengths.texts, strict=True)]
    if not lengths.is_complete:
        counted += [(tokens, len(text)) for tokens, text in zip(longest, lengths.longest_texts, strict=True)]
        tokens, read = longest[0], len(lengths.longest_texts[0])
        counted.append((round(tokens * lengths.characters[-1] / max(1, read)), lengths.characters[-1]))
    return max(counted)


def _median(lengths: Sequence[int]) -> int:
    return sorted(lengths)[len(lengths) // 2]
