"""How much of the texts the reranker will not read, from a sample and without loading a model."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from pathlib import Path
from zlib import crc32

SAMPLE = 100  # texts; a share is then known to within 10 points, and the check stays a matter of a second
SPECIAL = 3  # [CLS] query [SEP] document [SEP]


class Sample:
    """Some of the texts that stream by: those with the lowest checksums, so the same ones each time."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, str]] = []
        self._seen = 0

    def add(self, text: str) -> None:
        """The next text."""
        entry = (-crc32(text.encode()), self._seen, text)
        self._seen += 1
        if len(self._heap) < SAMPLE:
            heapq.heappush(self._heap, entry)
        elif entry > self._heap[0]:
            heapq.heapreplace(self._heap, entry)

    @property
    def texts(self) -> list[str]:
        """The sample."""
        return [text for _, _, text in self._heap]


def describe_lengths(documents: Sequence[str], queries: Sequence[str], tokenizer: Path, max_length: int) -> str:
    """One line: the share of documents and queries of which the reranker reads only the beginning.

    A pair is cut at `max_length` tokens, the longer text first: a document is cut where it is longer than what the
    median query leaves, a query where it is longer than half of the room.
    """
    from tokenizers import Tokenizer

    backend = Tokenizer.from_file(str(tokenizer))
    backend.no_truncation()
    backend.no_padding()

    def lengths(texts: Sequence[str]) -> list[int]:
        return [len(encoded) for encoded in backend.encode_batch(list(texts), add_special_tokens=False)]

    asked, read = lengths(queries), lengths(documents)
    room = max_length - SPECIAL
    left = max(room - _median(asked), room // 2)
    long_documents = sum(length > left for length in read) / len(read)
    long_queries = sum(length > room // 2 for length in asked) / len(asked)
    return (
        f"{long_documents:.0%} of the documents are longer than the {left} tokens that the median query leaves of "
        f"{max_length} (reranker.max_length) and are cut; {long_queries:.0%} of the queries are; median document "
        f"{_median(read)} tokens, longest {max(read)} (of {len(read)} looked at)"
    )


def _median(lengths: Sequence[int]) -> int:
    return sorted(lengths)[len(lengths) // 2]
