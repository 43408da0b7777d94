"""Dense search: the documents with the largest inner product of document and query vector.

`flat` is exact and reads the shards block by block, so that memory holds one block and the results for any corpus size.
`ivf` is FAISS's approximate index for corpora too large for exact search; it holds all vectors in memory. On a GPU
exact search is a matrix product over blocks of documents and queries; on a CPU with bf16 units most of it is in bf16.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any, Literal

import faiss
import numpy as np
import torch

from trainer.retriever.bf16_search import search_in_bf16
from trainer.retriever.candidates import NOTHING, RankedLists, sort_keys
from trainer.retriever.embeddings import Embeddings
from trainer.runtime.console import progress
from trainer.runtime.precision import has_native_bf16

Kind = Literal["auto", "flat", "ivf"]
# queries x documents x dimensions of one hour of exact search: a CPU at 60 GFLOP/s, a small GPU at 6 TFLOP/s
EXACT_WORK = {"cpu": 1e14, "cuda": 1e16}
BF16_WORK = 1e10  # of a tenth of a second, from which on a first pass in bf16 is worth it
PROBES = 64  # IVF lists searched for each query


def search_dense(queries: Embeddings, documents: Embeddings, depth: int, kind: Kind = "auto") -> RankedLists:
    """Return the top `depth` documents of every query; ties in order of rows.

    `auto` takes exact search if that takes about an hour at most, else an inverted file (IVF).
    """
    depth = min(depth, len(documents))
    vectors = queries.rows(np.arange(len(queries)))
    device = _device()
    if kind == "auto":
        kind = choose_index(len(queries), len(documents), documents.dimensions, device)
    if kind != "flat":
        return _search_index(vectors, documents, depth)
    if device == "cpu":
        if len(queries) * len(documents) * documents.dimensions >= BF16_WORK and has_native_bf16():
            return search_in_bf16(vectors, documents, _shown(documents), depth)
        return search_flat(vectors, documents, depth)
    return search_on_device(vectors, documents, depth, device)


def choose_index(queries: int, documents: int, dimensions: int, device: str) -> Literal["flat", "ivf"]:
    """Return `flat` if exact search takes about an hour at most on `device` (cpu or cuda), else `ivf`."""
    return "flat" if queries * documents * dimensions <= EXACT_WORK[device] else "ivf"


def search_flat(queries: np.ndarray, documents: Embeddings, depth: int) -> RankedLists:
    """Search exactly on a CPU, block by block with FAISS; ties in order of rows."""
    best = np.empty((len(queries), 0), dtype=np.int64)
    for first, block in _shown(documents):
        deeper = min(depth + 1, len(block))  # one more shows whether the cut separates equal scores
        scores, rows = faiss.knn(queries, block, deeper, metric=faiss.METRIC_INNER_PRODUCT)
        for query in np.flatnonzero(scores[:, -2] == scores[:, -1]) if deeper > depth else ():
            products = block @ queries[query]
            rows[query] = np.argsort(-products, kind="stable")[:deeper]
            scores[query] = products[rows[query]]
        best = np.concatenate([best, sort_keys(scores[:, :depth], first + rows[:, :depth])], axis=1)
        if best.shape[1] > depth:
            best = np.partition(best, best.shape[1] - depth, axis=1)[:, -depth:]
    return RankedLists.best(best, depth)


def _shown(documents: Embeddings) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the blocks of the documents with their first rows, and show the progress."""
    with progress("search", total=len(documents)) as advance:
        for first, block in documents.blocks():
            yield first, block
            advance(len(block))


def _device() -> Literal["cpu", "cuda"]:
    torch = sys.modules.get("torch")  # imported already if texts are embedded; cached vectors need no torch
    return "cuda" if torch is not None and torch.cuda.is_available() else "cpu"


def search_on_device(
    queries: np.ndarray, documents: Embeddings, depth: int, device: str, queries_at_once: int = 1024
) -> RankedLists:
    """Search exactly on a torch device by matrix products in float32; ties in order of rows.

    One product covers 32,768 documents and `queries_at_once` queries: 128 MB of scores and about three times 256 MB of
    sort keys, whatever the number of queries and documents.
    """
    parts = [torch.from_numpy(part).to(device) for part in _cut(queries, queries_at_once)]
    best = [torch.empty((len(part), 0), dtype=torch.int64, device=device) for part in parts]
    for first, block in _shown(documents):
        block = torch.from_numpy(block).to(device)
        rows = torch.arange(first, first + len(block), device=device)
        for index, part in enumerate(parts):
            bits = (part @ block.T + 0).view(torch.int32).long()  # the same keys as `sort_keys`
            keys = (torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits) << 32) | (0xFFFFFFFF - rows)
            keys = keys.topk(min(depth, len(block)), dim=1).values
            keys = torch.cat([best[index], keys], dim=1)
            best[index] = keys.topk(min(depth, keys.shape[1]), dim=1).values
    return RankedLists.best(torch.cat(best).cpu().numpy(), depth)


def _cut(array: np.ndarray, size: int) -> list[np.ndarray]:
    return [array[start : start + size] for start in range(0, len(array), size)]


def _search_index(queries: np.ndarray, documents: Embeddings, depth: int) -> RankedLists:
    """Search approximately with FAISS: an inverted file of about 4 sqrt(N) lists."""
    size = len(documents)
    lists = max(1, min(int(4 * size**0.5), size // 39))  # FAISS needs 39 training vectors for each list
    index: Any = faiss.index_factory(documents.dimensions, f"IVF{lists},Flat", faiss.METRIC_INNER_PRODUCT)
    sample = np.random.default_rng(0).choice(size, min(size, 64 * lists), replace=False)
    index.train(documents.rows(np.sort(sample)))
    index.nprobe = min(PROBES, lists)
    for _, block in _shown(documents):
        index.add(block)
    scores, rows = index.search(queries, depth)
    return RankedLists.ordered(rows, np.where(rows == NOTHING, 0.0, scores))
