"""Documents that are alike: the same text but for case, punctuation and white space, or nearly the same.

Nearly means a Jaccard similarity of the sets of three words in a row of 0.8 or more. MinHash proposes, the exact
similarity decides, so what is reported is true; with 16 bands of 4 hashes a pair of similarity 0.8 is proposed with
probability 1 - (1 - 0.8^4)^16 = 0.9998.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from array import array
from collections.abc import Iterable, Mapping

SIMILARITY = 0.8
BANDS, BAND = 16, 4
# Near duplicates are looked for in so many documents and words from the start: a check has to answer in
# a second, the building of a collection need not.
NEAR_DOCUMENTS, NEAR_WORDS = 20_000, 1_000_000
BUILD_DOCUMENTS, BUILD_WORDS = 100_000, 20_000_000
FEWEST_WORDS = 8  # of shorter texts, one changed word more or less makes another text
# Scripts without spaces between words: each character counts as a word.
_WORDS = re.compile(
    r"[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+"
)


class Twins:
    """Collects documents as they stream by: 8 bytes of each, and what tells near duplicates apart for the first ones.

    Those are the first `documents`, or as many as hold `words` words.
    """

    def __init__(self, documents: int, words: int) -> None:
        self._limits = documents, words
        self.leader: dict[int, int] = {}  # row of a repeated document to the first row alike
        self.exact = 0
        self.near = 0
        self.looked_at = 0  # documents among which near duplicates were looked for
        self.rows = 0
        self._first: dict[int, int] = {}  # hash of a text to its first row
        self._shingles: dict[int, array[int]] = {}  # four bytes of each
        self._bands: dict[int, list[int]] = {}
        self._words = 0

    def add(self, passage: str) -> None:
        """The next document."""
        row = self.rows
        self.rows += 1
        words = _WORDS.findall(passage.lower())
        digest = hashlib.blake2b(" ".join(words).encode(), digest_size=8).digest()
        first = self._first.setdefault(int.from_bytes(digest, "big"), row)
        documents, most = self._limits
        near = self.looked_at == row < documents and self._words < most
        self.looked_at += near
        self._words += len(words)
        if first != row:
            self.leader[row] = first
            self.exact += 1
        elif near and len(words) >= FEWEST_WORDS:
            self._look(row, {" ".join(three) for three in zip(words, words[1:], words[2:], strict=False)})

    def _look(self, row: int, shingles: set[str]) -> None:
        """Compare one text with those before it that share a band of its MinHash signature."""
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
        """Each first row with the rows that repeat it."""
        groups: dict[int, list[int]] = {}
        for row, first in self.leader.items():
            groups.setdefault(first, [first]).append(row)
        return groups


def jaccard(one: frozenset[int], other: frozenset[int]) -> float:
    """Size of the intersection over that of the union."""
    shared = len(one & other)
    return shared / (len(one) + len(other) - shared)


def hidden_positives(
    groups: Iterable[list[int]],
    ids: list[str],
    qrels: Mapping[str, Mapping[str, Mapping[str, int]]],
    relevant_from: int,
) -> list[tuple[str, str, str]]:
    """(query, positive, twin) for every twin of a positive that is not judged relevant itself."""
    twins = {ids[row]: [ids[other] for other in group if other != row] for group in groups for row in group}
    return [
        (query, document, twin)
        for judged in qrels.values()
        for query, grades in judged.items()
        for document, grade in grades.items()
        if grade >= relevant_from
        for twin in twins.get(document, ())
        if grades.get(twin, 0) < relevant_from
    ]
