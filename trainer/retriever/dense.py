"""Dense search: the documents whose vectors have the largest inner product with a query's.

`flat` is exact and reads the shards block by block, so memory holds one block and the answers, whatever the corpus.
`ivf` and `hnsw` are FAISS's approximate indexes for corpora that exact search takes too long for; they hold the whole
corpus in memory. On a GPU exact search is a plain matrix product there.
"""

from __future__ import annotations

import sys
from typing import Any, Literal

import numpy as np

from trainer.retriever.candidates import NOTHING, Ranking
from trainer.retriever.embeddings import Embeddings

Kind = Literal["auto", "flat", "ivf", "hnsw"]
EXACT_WORK = 1e14  # queries x documents x dimensions that exact search takes: about an hour at 60 GFLOP/s
PROBES = 64  # IVF lists that are searched
HNSW_LINKS = 32


def search_dense(queries: Embeddings, documents: Embeddings, depth: int, kind: Kind = "auto") -> Ranking:
    """The best `depth` documents of every query; equal scores in order of rows.

    `auto` searches exactly while that takes an hour at most, else through an inverted file.
    """
    depth = min(depth, len(documents))
    vectors = queries.rows(np.arange(len(queries)))
    if kind == "auto":
        kind = "flat" if len(queries) * len(documents) * documents.dimensions <= EXACT_WORK else "ivf"
    if kind != "flat":
        return _search_index(vectors, documents, depth, kind)
    return search_on_gpu(vectors, documents, depth) if _has_gpu() else search_flat(vectors, documents, depth)


def search_flat(queries: np.ndarray, documents: Embeddings, depth: int) -> Ranking:
    """Exact search on a CPU, block by block with FAISS.

    An answer is one integer, its score's bits above those of its row, so that the order of integers is that of scores
    and, among equal ones, of rows.
    """
    import faiss

    best = np.empty((len(queries), 0), dtype=np.int64)
    for first, block in documents.blocks():
        deeper = min(depth + 1, len(block))  # one more shows whether equal scores stand on both sides of the cut
        scores, rows = faiss.knn(queries, block, deeper, metric=faiss.METRIC_INNER_PRODUCT)
        for place in np.flatnonzero(scores[:, -2] == scores[:, -1]) if deeper > depth else ():
            whole = block @ queries[place]
            rows[place] = np.argsort(-whole, kind="stable")[:deeper]
            scores[place] = whole[rows[place]]
        best = np.concatenate([best, _keys(scores[:, :depth], first + rows[:, :depth])], axis=1)
        if best.shape[1] > depth:
            best = np.partition(best, best.shape[1] - depth, axis=1)[:, -depth:]
    best = np.sort(best, axis=1)[:, ::-1]
    return Ranking((0xFFFFFFFF - (best & 0xFFFFFFFF)).astype(np.int32), _scores(best))


def _keys(scores: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Integers (int64) in the order of float32 scores and, where those are equal, of falling rows."""
    bits = np.ascontiguousarray(scores).view(np.int32).astype(np.int64)
    ordered = np.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return (ordered << 32) | (0xFFFFFFFF - rows)


def _scores(keys: np.ndarray) -> np.ndarray:
    """The float32 scores of `_keys`."""
    bits = (keys >> 32).astype(np.int32)
    return np.where(bits < 0, bits ^ 0x7FFFFFFF, bits).view(np.float32)


def _has_gpu() -> bool:
    torch = sys.modules.get("torch")  # whoever embeds has imported it; mining kept vectors needs no torch
    return torch is not None and torch.cuda.is_available()


def search_on_gpu(queries: np.ndarray, documents: Embeddings, depth: int, device: str = "cuda") -> Ranking:
    """Exact search by plain matrix products in float32, block by block."""
    import torch

    asked = torch.from_numpy(queries).to(device)
    best = torch.empty((len(queries), 0), device=device)
    rows = torch.empty((len(queries), 0), dtype=torch.int64, device=device)
    for first, block in documents.blocks():
        scores = torch.cat([best, asked @ torch.from_numpy(block).to(device).T], dim=1)
        here = torch.arange(first, first + len(block), device=device).expand(len(queries), -1)
        best, order = scores.topk(min(depth, scores.shape[1]), dim=1)
        rows = torch.cat([rows, here], dim=1).gather(1, order)
    return Ranking.ordered(rows.cpu().numpy(), best.cpu().numpy())


def _search_index(queries: np.ndarray, documents: Embeddings, depth: int, kind: Kind) -> Ranking:
    """Approximate search with FAISS: an inverted file of about 4 sqrt(N) lists, or a graph."""
    import faiss

    size = len(documents)
    lists = max(1, min(int(4 * size**0.5), size // 39))  # FAISS asks for 39 training vectors a list
    name = f"IVF{lists},Flat" if kind == "ivf" else f"HNSW{HNSW_LINKS}"
    index: Any = faiss.index_factory(documents.dimensions, name, faiss.METRIC_INNER_PRODUCT)
    if kind == "ivf":
        sample = np.random.default_rng(0).choice(size, min(size, 64 * lists), replace=False)
        index.train(documents.rows(np.sort(sample)))
        index.nprobe = min(PROBES, lists)
    else:
        index.hnsw.efSearch = 2 * depth
    for _, block in documents.blocks():
        index.add(block)
    scores, rows = index.search(queries, depth)
    return Ranking.ordered(rows, np.where(rows == NOTHING, 0.0, scores))
