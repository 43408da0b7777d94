"""A teacher: a cross-encoder for mining and distillation whose scores are cached on disk.

The cache key is a fingerprint of the teacher (weights, length, precision, windows, prompt) and a hash of the two texts,
so that no pair is scored twice, in this run or another, and a stopped run loses at most one chunk.
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
from trainer.model_files.decoders import NO_PROMPTING, Prompting
from trainer.recipe import Passages
from trainer.runtime import console, processes
from trainer.runtime.launch import on_main
from trainer.runtime.precision import Precision
from trainer.runtime.run_folder import json_sha256, remove, replacing

PAIRS_PER_FILE = 4096  # pairs scored before they are written: minutes on a CPU


class Teacher:
    """A cross-encoder as a function: `teacher(rows)` returns the logits of (query row, document row) pairs."""

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
        passages: Passages | None = None,
        prompting: Prompting = NO_PROMPTING,
    ) -> None:
        self._reference = reference
        self._collection = collection
        self._accelerator = accelerator
        self._max_length = max_length
        self._precision: Precision = precision
        self._trust_remote_code = trust_remote_code
        self._passages = passages
        self._prompting = prompting
        parts = [references.fingerprint(references.locate(reference)), max_length]
        parts += [] if precision == "fp32" else [precision]
        parts += [] if passages is None else [passages.model_dump()]
        parts += prompting.parts
        self._folder = cache / json_sha256(*parts)[:16]
        self._known = on_main(accelerator, self._read)
        self.num_scored = 0  # pairs that were not in the cache

    def __call__(self, rows: Sequence[tuple[int, int]]) -> np.ndarray:
        """Return the logits (pairs,) float32; all processes together score and store those missing in the cache."""
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
                prompting=self._prompting,
            )
            reranker.passages = self._passages
            tokenized = TokenizedCollection(self._collection, reranker.pairs)
            ours = len(range(0, len(new), self._accelerator.num_processes))  # pairs of one process
            with console.progress("teacher", total=ours) as advance:
                for start in range(0, len(new), PAIRS_PER_FILE):
                    chunk = new[start : start + PAIRS_PER_FILE]
                    rows = [row for _, row in chunk]
                    scores = score_rows(reranker, tokenized, rows, self._accelerator, advance)
                    self._store([key for key, _ in chunk], rows, scores)
            self.num_scored += len(new)
        return np.array([self._known[key] for key in keys], dtype=np.float32)

    def _read(self) -> dict[bytes, float]:
        """Return all cached scores by key; a damaged file is deleted, and its pairs will be scored again."""
        known: dict[bytes, float] = {}
        for path in sorted(self._folder.glob("*.npz")):
            try:
                with path.open("rb") as file, np.load(file) as arrays:
                    if arrays["teacher"] != self._folder.name:
                        raise ValueError("scores of another teacher")
                    known |= zip(map(bytes, arrays["keys"]), arrays["scores"].tolist(), strict=True)
            except FileNotFoundError:  # deleted meanwhile
                continue
            except (IsADirectoryError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
                console.warn("teacher", f"{path} is damaged; it is deleted, and its pairs are scored again")
                remove(path)
        return known

    def _keys(self, rows: Sequence[tuple[int, int]]) -> list[bytes]:
        """Return the cache key of each pair: the hashes of its two texts."""
        rows = [(query, self._collection.read_with(query, document)) for query, document in rows]
        queries = _text_hashes(self._collection.query_texts, {query for query, _ in rows})
        documents = _text_hashes(self._collection.passages, {document for _, document in rows})
        return [queries[query] + documents[document] for query, document in rows]

    def _store(self, keys: list[bytes], rows: list[tuple[int, int]], scores: np.ndarray) -> None:
        """Add scores to the cache, and write them to a new file on the main process."""
        self._known |= zip(keys, scores.tolist(), strict=True)
        if not processes.is_main():
            return
        # A random name: other runs add files to the folder too, and users may delete some.
        with replacing(self._folder / f"{uuid4().hex}.npz") as partial, partial.open("wb") as file:
            np.savez(
                file,
                keys=np.array([list(key) for key in keys], dtype=np.uint8),
                scores=scores,
                teacher=np.array(self._folder.name),
                queries=np.array([self._collection.query_ids[query] for query, _ in rows]),
                documents=np.array([self._collection.document_ids[document] for _, document in rows]),
            )


def _text_hashes(texts: Callable[[Sequence[int]], list[str]], rows: set[int]) -> dict[int, bytes]:
    """Return an eight-byte hash of the text in each row."""
    order = sorted(rows)
    hashes = (hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts(order))
    return dict(zip(order, hashes, strict=True))
