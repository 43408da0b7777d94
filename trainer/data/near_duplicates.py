"""Duplicates and near-duplicates among the documents.

Duplicates have the same text except for case, punctuation and white space. Near-duplicates have a Jaccard similarity of
their sets of word triples of 0.8 or more. MinHash finds candidate pairs and the exact similarity decides, so there are
no false reports; with 16 bands of 4 hashes a pair of similarity 0.8 is found with a probability of
1 - (1 - 0.8^4)^16 = 0.9998.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from array import array
from collections.abc import Iterable, Mapping

SIMILARITY = 0.8
BANDS, BAND = 16, 4
# Limits of the first documents and words that are searched for near-duplicates. A check has to take about a second;
# building a collection may take longer.
NEAR_DOCUMENTS, NEAR_WORDS = 20_000, 1_000_000
BUILD_DOCUMENTS, BUILD_WORDS = 100_000, 20_000_000
MIN_WORDS = 8  # in shorter texts a single changed word can change the meaning
# In scripts without spaces between words each character counts as a word.
WORDS = re.compile(
    r"[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+"
)


class NearDuplicates:
    """Finds duplicates of documents that are added one by one.

    It keeps 8 bytes of each document, and the hashed word triples of the first ones, in which it also finds
    near-duplicates: at most `documents` documents and about `words` words.
    """

    def __init__(self, documents: int, words: int) -> None:
        self._limits = documents, words
        self.leader: dict[int, int] = {}  # row of a duplicate to the first row with that text
        self.exact = 0
        self.near = 0
        self.compared = 0  # documents that were searched for near-duplicates
        self.rows = 0
        self._first: dict[int, int] = {}  # hash of a text to its first row
        self._shingles: dict[int, array[int]] = {}  # four bytes of each
        self._bands: dict[int, list[int]] = {}
        self._words = 0

    def add(self, passage: str) -> None:
        """Add the next document."""
        row = self.rows
        self.rows += 1
        words = WORDS.findall(passage.lower())
        digest = hashlib.blake2b(" ".join(words).encode(), digest_size=8).digest()
        first = self._first.setdefault(int.from_bytes(digest, "big"), row)
        documents, most = self._limits
        near = self.compared == row < documents and self._words < most
        self.compared += near
        self._words += len(words)
        if first != row:
            self.leader[row] = first
            self.exact += 1
        elif near and len(words) >= MIN_WORDS:
            self._compare(row, {" ".join(three) for three in zip(words, words[1:], words[2:], strict=False)})

    def _compare(self, row: int, shingles: set[str]) -> None:
        """Compare a text with the earlier ones that share a band of its MinHash signature."""
        from rensa import RMinHash  # pyright: ignore[reportAttributeAccessIssue] a compiled module without stubs

        sketch = RMinHash(num_perm=BANDS * BAND, seed=1)
        sketch.update(list(shingles))
        signature = sketch.digest()
        bands = [hash((band, *signature[band * BAND : (band + 1) * BAND])) for band in range(BANDS)]
        candidates = {other for band in bands for other in self._bands.get(band, ())}
        hashes = frozenset(zlib.crc32(shingle.encode()) for shingle in shingles)
        for other in sorted(candidates):
            if jaccard(hashes, frozenset(self._shingles[other])) >= SIMILARITY:
                self.leader[row] = self.leader.get(other, other)
                self.near += 1
                return
        self._shingles[row] = array("I", hashes)
        for band in bands:
            self._bands.setdefault(band, []).append(row)

    def groups(self) -> dict[int, list[int]]:
        """Return each first row with all rows of its group, itself included."""
        groups: dict[int, list[int]] = {}
        for row, first in self.leader.items():
            groups.setdefault(first, [first]).append(row)
        return groups


def jaccard(one: frozenset[int], other: frozenset[int]) -> float:
    """Return the Jaccard similarity: the size of the intersection over that of the union."""
    shared = len(one & other)
    return shared / (len(one) + len(other) - shared)


def unjudged_duplicates(
    groups: Iterable[list[int]],
    ids: list[str],
    qrels: Mapping[str, Mapping[str, Mapping[str, int]]],
    relevant_from: int,
) -> list[tuple[str, str, str]]:
    """Return (query, positive, duplicate) for every duplicate of a positive that is not judged relevant itself."""
    duplicates = {ids[row]: [ids[other] for other in group if other != row] for group in groups for row in group}
    return [
        (query, document, duplicate)
        for judged in qrels.values()
        for query, grades in judged.items()
        for document, grade in grades.items()
        if grade >= relevant_from
        for duplicate in duplicates.get(document, ())
        if grades.get(duplicate, 0) < relevant_from
    ]
