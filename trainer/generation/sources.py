"""Which documents are asked for queries, and to which split the queries of each belong.

A document belongs to one split before any query is made, with all documents that nearly repeat it, so no query in train
comes from a document that a dev or test query comes from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from trainer.data import Collection
from trainer.data.splits import split_by_hash
from trainer.recipe import Data
from trainer.retriever import Embeddings

CLUSTERS = 256  # most clusters; a topic needs some documents
DOCUMENTS_PER_CLUSTER = 8  # on average, at least
ROUNDS = 10  # of k-means
TRAINING_POINTS = 256  # of each cluster, as FAISS recommends
ROWS_AT_ONCE = 4096


class Source(NamedTuple):
    """A document that is asked for queries, and the split of these."""

    document: int
    split: str


def plan(
    collection: Collection, section: Data, wanted: int, embeddings: Embeddings | None = None, seed: int = 0
) -> list[Source]:
    """Return the documents to ask, at most `wanted`, those of all topics first.

    Queries are made for train, and for dev and test if they have no real queries. Of documents with nearly the same
    text one is asked. Without `embeddings` the topics are not known, and the order is that of a hash of the text.
    """
    found = list(_askable(collection, section))
    if not found:
        return []
    rows = np.array([source.document for source, _ in found], dtype=np.int64)
    # By a hash of the text, so that the order does not depend on the order of the corpus.
    order = np.argsort(np.array([digest for _, digest in found], dtype=np.uint64), kind="stable")
    if embeddings is not None and wanted < len(rows):
        order = _round_robin(_clusters(embeddings, rows, seed)[order], order)
    return [found[index][0] for index in order[:wanted].tolist()]


def _askable(collection: Collection, section: Data) -> Iterator[tuple[Source, int]]:
    """Yield every document that may be asked, with its split and a 64-bit hash of its text."""
    alike = collection.first_alike
    real = {split for split in ("dev", "test") if collection.answerable(split)}
    held_out = {
        int(alike[document])
        for split in real
        for query in collection.answerable(split)
        for document in collection.positives(split, query)
    }
    for start in range(0, len(alike), ROWS_AT_ONCE):
        rows = range(start, min(start + ROWS_AT_ONCE, len(alike)))
        for row, text in zip(rows, collection.passages(list(rows)), strict=True):
            if row == alike[row] and row not in held_out and text.strip():
                digest = hashlib.sha256(b"order" + text.encode()).digest()
                split = split_by_hash(text, section)  # real dev and test queries need no made ones
                yield Source(row, "train" if split in real else split), int.from_bytes(digest[:8], "big")


def _clusters(embeddings: Embeddings, rows: np.ndarray, seed: int) -> np.ndarray:
    """Return the cluster (rows,) of each document."""
    import faiss

    count = max(1, min(CLUSTERS, len(rows) // DOCUMENTS_PER_CLUSTER))
    drawn = np.random.default_rng(seed).choice(len(rows), min(len(rows), count * TRAINING_POINTS), replace=False)
    kmeans = faiss.Kmeans(embeddings.dimensions, count, niter=ROUNDS, seed=seed, min_points_per_centroid=1)
    kmeans.train(embeddings.rows(rows[np.sort(drawn)]))
    parts = [
        kmeans.assign(embeddings.rows(rows[start : start + ROWS_AT_ONCE]))[1]
        for start in range(0, len(rows), ROWS_AT_ONCE)
    ]
    return np.concatenate(parts)


def _round_robin(clusters: Sequence[int] | np.ndarray, order: np.ndarray) -> np.ndarray:
    """Return `order` with one element of each cluster, then a second one of each, and so on."""
    seen: dict[int, int] = {}
    turns = np.empty(len(order), dtype=np.int64)
    for place, cluster in enumerate(np.asarray(clusters).tolist()):
        turns[place] = seen[cluster] = seen.get(cluster, -1) + 1
    return order[np.argsort(turns, kind="stable")]
