"""A teacher: a cross-encoder that mining asks, and every answer it ever gave.

Answers are kept under what the teacher is (weights, length) and what it read (the two texts), so that no pair is
scored twice, in this run or another, and a stopped run loses a chunk at most.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from uuid import uuid4

import numpy as np
from accelerate import Accelerator

from trainer.data import Collection
from trainer.model.reranker import Reranker
from trainer.model.scoring import TokenizedCollection, score_rows
from trainer.model_files import references
from trainer.runtime import console, processes
from trainer.runtime.launch import on_main
from trainer.runtime.precision import Precision
from trainer.runtime.run_folder import fingerprint, remove, replacing

CHUNK = 4096  # pairs scored between two writes: minutes on a CPU


class Teacher:
    """`teacher(rows)` gives the logits (pairs,) float32 of (query row, document row) pairs."""

    def __init__(
        self,
        reference: str,
        collection: Collection,
        cache: Path,
        accelerator: Accelerator,
        *,
        max_length: int,
        precision: Precision = "fp32",
        trust_remote_code: bool = False,
    ) -> None:
        self._reference = reference
        self._collection = collection
        self._accelerator = accelerator
        self._max_length = max_length
        self._precision: Precision = precision
        self._trust_remote_code = trust_remote_code
        parts = [references.fingerprint(references.locate(reference)), max_length]
        parts += [] if precision == "fp32" else [precision]
        self._folder = cache / fingerprint(*parts)[:16]
        self._known = on_main(accelerator, self._read)
        self.asked = 0  # pairs that had to be scored

    def __call__(self, rows: Sequence[tuple[int, int]]) -> np.ndarray:
        """Logits of the pairs; those never asked before are scored, by all processes together, and kept."""
        keys = self._keys(rows)
        missing = {key: row for key, row in zip(keys, rows, strict=True) if key not in self._known}
        new = list(missing.items())
        if new:
            reranker = Reranker.load(
                self._reference,
                head="trained",
                max_length=self._max_length,
                precision=self._precision,
                trust_remote_code=self._trust_remote_code,
            )
            tokenized = TokenizedCollection(self._collection, reranker.pairs)
            for start in range(0, len(new), CHUNK):
                chunk = new[start : start + CHUNK]
                scores = score_rows(reranker, tokenized, [row for _, row in chunk], self._accelerator, note="teacher")
                self._keep([key for key, _ in chunk], [row for _, row in chunk], scores)
            self.asked += len(new)
        return np.array([self._known[key] for key in keys], dtype=np.float32)

    def _read(self) -> dict[bytes, float]:
        """Return all scores that were kept; a damaged file is deleted, and its pairs will be scored again."""
        known: dict[bytes, float] = {}
        for path in sorted(self._folder.glob("*.npz")):
            try:
                with path.open("rb") as file, np.load(file) as kept:
                    if kept["teacher"] != self._folder.name:
                        raise ValueError("another teacher's answers")
                    known |= zip(map(bytes, kept["keys"]), kept["scores"].tolist(), strict=True)
            except FileNotFoundError:  # deleted meanwhile
                continue
            except (IsADirectoryError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
                console.warn("teacher", f"{path} is damaged; it is deleted, and its pairs are scored again")
                remove(path)
        return known

    def _keys(self, rows: Sequence[tuple[int, int]]) -> list[bytes]:
        """A name for each pair, made of its two texts."""
        queries = _named(self._collection.query_texts, {query for query, _ in rows})
        documents = _named(self._collection.passages, {document for _, document in rows})
        return [queries[query] + documents[document] for query, document in rows]

    def _keep(self, keys: list[bytes], rows: list[tuple[int, int]], scores: np.ndarray) -> None:
        self._known |= zip(keys, scores.tolist(), strict=True)
        if not processes.is_main():
            return
        # The name is of its own: other runs add files to the folder too, and users delete some.
        with replacing(self._folder / f"{uuid4().hex}.npz") as partial, partial.open("wb") as file:
            np.savez(
                file,
                keys=np.array([list(key) for key in keys], dtype=np.uint8),
                scores=scores,
                teacher=np.array(self._folder.name),
                queries=np.array([self._collection.query_ids[query] for query, _ in rows]),
                documents=np.array([self._collection.document_ids[document] for _, document in rows]),
            )


def _named(texts: Callable[[Sequence[int]], list[str]], rows: set[int]) -> dict[int, bytes]:
    """A name of eight bytes for the text in each row."""
    order = sorted(rows)
    names = (hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts(order))
    return dict(zip(order, names, strict=True))
