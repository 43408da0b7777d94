"""Windows: a long document read in overlapping parts; its score is that of the best part.

    score(query, document) = max of score(query, window) over the windows of the document

(MaxP: Dai and Callan, SIGIR 2019.) Windows are cut from token ids: text that is cut and tokenised again can have other
tokens at the cuts. A pair of a query and a window is never truncated, except for a query that is longer than half of
the input. The setting is saved with the model as `passages.json`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from trainer.errors import ModelError
from trainer.model.batching import Tokens
from trainer.recipe import Passages
from trainer.runtime.run_folder import read_record, write_json

FILE = "passages.json"  # in the model folder
VERSION = 1

Pair = tuple[Tokens, Tokens]


@dataclass(frozen=True)
class Windowed:
    """Pairs of a query and one window each; `counts` (documents,) says how many windows each document has."""

    pairs: Sequence[Pair]
    counts: np.ndarray

    @property
    def starts(self) -> np.ndarray:
        """Index (documents,) of the first window of each document in `pairs`."""
        return np.cumsum(self.counts) - self.counts

    def best(self, scores: np.ndarray) -> np.ndarray:
        """Return each document's score (documents,): the largest of its windows' (windows,), NaN if one of them is."""
        return np.maximum.reduceat(scores, self.starts) if len(self.counts) else scores

    def best_index(self, scores: np.ndarray) -> np.ndarray:
        """Return the index (documents,) of each document's best window in `scores` (windows,), the first of equals."""
        document = np.repeat(np.arange(len(self.counts)), self.counts)
        return np.lexsort((-scores, document))[self.starts]


class Counted:
    """Chunks of windows, yielded once; their counts are kept, and what `add` returns, (windows,), to add to logits."""

    def __init__(self, chunks: Iterable[Windowed], add: Callable[[Sequence[Pair]], np.ndarray]) -> None:
        self._chunks = chunks
        self._add = add
        self._counts: list[np.ndarray] = []
        self._added: list[np.ndarray] = []

    def __iter__(self) -> Iterator[Windowed]:
        for chunk in self._chunks:
            self._counts.append(chunk.counts)
            self._added.append(self._add(chunk.pairs))
            yield chunk

    def best(self, logits: np.ndarray) -> np.ndarray:
        """Return the score (documents,) of each document of all chunks, from the logits of the windows (windows,)."""
        if not self._counts:
            return logits
        return Windowed([], np.concatenate(self._counts)).best(logits + np.concatenate(self._added))


def whole(pairs: Sequence[Pair]) -> Windowed:
    """Return pairs whose documents are read in one part, which is truncated where it is too long."""
    return Windowed(pairs, np.ones(len(pairs), dtype=np.int64))


def cut(passages: Passages, pairs: Sequence[Pair], room: Callable[[Tokens], int]) -> Windowed:
    """Return the windows of all pairs; `room(query)` is the number of a document's tokens that are read with it."""
    windows: list[Pair] = []
    counts = np.empty(len(pairs), dtype=np.int64)
    for number, (query, document) in enumerate(pairs):
        own = cut_document(passages, document, room(query))
        windows += [(query, window) for window in own]
        counts[number] = len(own)
    return Windowed(windows, counts)


def cut_document(passages: Passages, document: Tokens, room: int) -> list[Tokens]:
    """Return the windows of one document; they share its memory."""
    return [document[span] for span in passages.windows(len(document), room)]


def save(passages: Passages, folder: Path) -> None:
    """Write passages.json into a model folder."""
    write_json(folder / FILE, {"version": VERSION, **passages.model_dump()})


def load(folder: Path) -> Passages | None:
    """Return the setting in a model folder, None without the file; raises ModelError for an invalid file."""
    content = read_record(folder / FILE)
    if content is None:
        return None
    try:
        if content.pop("version", None) == VERSION and content.keys() == Passages.model_fields.keys():
            return Passages(**content)
    except ValidationError:
        pass
    raise ModelError(
        f"{folder / FILE}: not windows of version {VERSION}, which have `length` and `overlap` (tokens, the overlap "
        "less than the length); export the model again, or delete the file to truncate long documents"
    )
