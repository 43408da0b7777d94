"""Exact dense search on a CPU with bf16 units: products in bf16 first, then float32 for what they leave.

A bf16 product differs from the exact one by at most a bound that the vectors' own rounding gives. So most documents are
known to be below the best ones without their exact score, and the search finds the documents of float32, in half of
the time of a search in float32 (docs/benchmarks.md).
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from trainer.retriever.candidates import RankedLists, sort_keys
from trainer.retriever.embeddings import Embeddings

QUERIES_AT_ONCE, DOCUMENTS_AT_ONCE = 1024, 8192  # of one product: 16 MB in bf16
SCORED_AT_ONCE = 8192  # pairs that get their exact scores
ROUNDING = 2.0**-8  # largest relative error of a number rounded to bf16
SUMMING = 2.0**-23  # of one float32 addition, with room
CROWDED = 0.05  # share of a block's products above which all of them are computed exactly
WAITING = 64  # documents that wait for their exact score, as multiples of the depth, before they get it
NO_KEY = np.iinfo(np.int64).min


def search_in_bf16(
    queries: np.ndarray, documents: Embeddings, blocks: Iterable[tuple[int, np.ndarray]], depth: int
) -> RankedLists:
    """Return the `depth` documents with the largest inner products, ties in order of rows; exact in float32.

    `queries` is (queries, dimensions) float32, and `blocks` yields all of `documents`: first row and vectors. Memory
    holds a block and, for 1,024 queries at a time, its products; a search reads single documents again.
    """
    starts = range(0, len(queries), QUERIES_AT_ONCE)
    parts = [_Part(torch.from_numpy(queries[start : start + QUERIES_AT_ONCE]), documents, depth) for start in starts]
    for first, vectors in blocks:
        for start in range(0, len(vectors), DOCUMENTS_AT_ONCE):
            block = _Block(first + start, torch.from_numpy(vectors[start : start + DOCUMENTS_AT_ONCE]))
            for part in parts:
                part.search(block)
    if not parts:
        return RankedLists.best(np.empty((0, depth), dtype=np.int64), depth)
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:  # numpy computes with one thread each
        return RankedLists.best(np.concatenate(list(threads.map(_Part.finished, parts))), depth)


class _Block:
    """Documents in float32 and bf16, with the largest length of a vector and of its rounding error."""

    def __init__(self, first: int, exact: Tensor) -> None:
        self.first, self.exact, self.halves = first, exact, exact.bfloat16()
        self.length = exact.norm(dim=1).max()
        self.error = (self.halves.float() - exact).norm(dim=1).max()


class _Part:
    """The search of some queries: exact scores of the best documents so far, and documents that may be better."""

    def __init__(self, queries: Tensor, documents: Embeddings, depth: int) -> None:
        self.documents, self.queries, self.halves = documents, queries, queries.bfloat16()
        self.lengths = self.halves.float().norm(dim=1)
        self.errors = (self.halves.float() - queries).norm(dim=1)
        self.reach = torch.zeros(len(queries))  # largest error of a product so far, without the last rounding
        self.floors = torch.full((len(queries), depth), -torch.inf)  # the largest lower bounds of exact scores
        self.keys = np.full((len(queries), depth), NO_KEY)  # of the exact scores that are known
        self.waiting: list[tuple[Tensor, Tensor, Tensor]] = []  # queries, rows and bf16 scores

    def search(self, block: _Block) -> None:
        """Find the documents of a block that may be among the best."""
        scores = self.halves @ block.halves.T
        summing = self.queries.shape[1] * SUMMING * self.lengths * block.length
        self.reach = torch.maximum(self.reach, self.errors * block.length + self.lengths * block.error + summing)
        floors = self.floors
        passed = self._passed(scores, floors)
        if _crowded(passed):  # as in the first block, before which no floor is known
            best = scores.topk(min(self.keys.shape[1], scores.shape[1]), dim=1).values.float()
            floors = self._raised(_lower_bounds(best, self.reach[:, None]))
            passed = self._passed(scores, floors)
        if _crowded(passed):
            self._score_all(block)
            return
        queries, columns = map(torch.from_numpy, np.divmod(np.flatnonzero(passed), passed.shape[1]))
        found = scores[queries, columns].float()
        self.waiting.append((queries, columns + block.first, found))
        if floors is self.floors:
            bounds = _lower_bounds(found, self.reach[queries])
            floors = self._raised(_in_rows(queries, bounds, len(floors), -torch.inf))
        self.floors = floors
        if sum(len(found) for _, _, found in self.waiting) > WAITING * self.floors.numel():
            self._score_waiting()

    def finished(self) -> np.ndarray:
        """Return the sort keys (queries, depth) int64 of the best documents."""
        self._score_waiting()
        return self.keys

    def _passed(self, scores: Tensor, floors: Tensor) -> np.ndarray:
        """Return which bf16 scores (queries, n) are of documents that may be among the best."""
        lowest = self._lowest(floors).to(scores.dtype)[:, None]
        if not (lowest > 0).all():
            return (scores >= lowest).numpy()
        # Positive numbers are ordered like their bits, and the bits of negative ones are negative as integers, which
        # NumPy compares in a sixth of the time (0.5 instead of 2.9 ms for 1,024 x 8,192).
        return scores.view(torch.int16).numpy() >= lowest.view(torch.int16).numpy()

    def _lowest(self, floors: Tensor) -> Tensor:
        """Return the bf16 score (queries,) below which a document's exact score is below `depth` others."""
        least = floors[:, -1] - self.reach
        return least - 2 * ROUNDING * least.abs()

    def _score_all(self, block: _Block) -> None:
        """Compute all scores of a block exactly, where very many are nearly equal."""
        scores = self.queries @ block.exact.T
        best = scores.topk(min(self.keys.shape[1], len(block.exact)), dim=1).values
        queries, columns = (scores >= best[:, -1:]).nonzero(as_tuple=True)  # with all that equal the last one
        keys = torch.from_numpy(sort_keys(scores[queries, columns].numpy(), columns.numpy() + block.first))
        self._add(slice(None), _in_rows(queries, keys, len(scores), NO_KEY).numpy())
        self.floors = self._raised(best)

    def _score_waiting(self) -> None:
        """Compute exact scores of the waiting documents that may still be among the best."""
        if not self.waiting:
            return
        queries, rows, scores = map(torch.cat, zip(*self.waiting, strict=True))
        self.waiting = []
        left = scores >= self._lowest(self.floors)[queries]
        queries, rows = queries[left].numpy(), rows[left].numpy()
        order = np.argsort(queries, kind="stable")
        for start in range(0, len(order), SCORED_AT_ONCE):
            self._score_exactly(queries[order[start : start + SCORED_AT_ONCE]], rows[order[start:][:SCORED_AT_ONCE]])

    def _score_exactly(self, queries: np.ndarray, rows: np.ndarray) -> None:
        """Compute the exact scores of pairs of query (ascending) and document (pairs,) each."""
        vectors = self.documents.rows(rows)
        found, starts = np.unique(queries, return_index=True)
        for query, own, pairs in zip(found, *(np.split(one, starts[1:]) for one in (rows, vectors)), strict=True):
            # einsum adds up each row in the same order, so that equal documents have equal scores
            scores = np.einsum("nd,d->n", pairs, self.queries.numpy()[query])
            self._add(slice(query, query + 1), sort_keys(scores, own)[None])

    def _add(self, queries: slice, keys: np.ndarray) -> None:
        """Add exact scores, given as sort keys (queries, n) int64."""
        depth = self.keys.shape[1]
        both = np.concatenate([self.keys[queries], keys], axis=1)
        self.keys[queries] = np.partition(both, both.shape[1] - depth, axis=1)[:, -depth:]

    def _raised(self, bounds: Tensor) -> Tensor:
        """Return the floors with lower bounds (queries, n) of exact scores, of documents that have none yet."""
        return torch.cat([self.floors, bounds], dim=1).topk(self.floors.shape[1], dim=1).values


def _lower_bounds(scores: Tensor, reach: Tensor) -> Tensor:
    """Return lower bounds of exact scores, from bf16 scores; within a query both have the same order."""
    return scores - reach - ROUNDING * scores.abs()


def _crowded(passed: np.ndarray) -> bool:
    """Return whether so many documents may be among the best that all products are better computed exactly."""
    return bool(np.count_nonzero(passed) > CROWDED * passed.size)


def _in_rows(queries: Tensor, values: Tensor, count: int, padding: float) -> Tensor:
    """Return the values of ascending query indices as a matrix (count, most of a query) with padding."""
    counts = torch.bincount(queries, minlength=count)
    columns = torch.arange(len(queries)) - (counts.cumsum(0) - counts)[queries]
    matrix = torch.full((count, int(counts.max())), padding, dtype=values.dtype)
    matrix[queries, columns] = values
    return matrix
