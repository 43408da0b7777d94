"""Fusion of several engines' rankings: reciprocal rank fusion, or a weighted sum of z-scores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trainer.retriever.candidates import NOTHING, RankedLists, sort_keys

Z_SCORE_DEPTH = 100  # top documents of a query over which an engine's mean and deviation are computed
RRF_K = 60  # of Cormack, Clarke and Büttcher, SIGIR 2009


def reciprocal_rank_fusion(rankings: Sequence[RankedLists], depth: int) -> RankedLists:
    """Return the fused lists of the top `depth` documents by the sum of 1 / (60 + rank) over the rankings.

    Cormack, Clarke and Büttcher, SIGIR 2009. Ties in order of rows.
    """
    documents = np.concatenate([ranking.documents for ranking in rankings], axis=1)
    ranks = np.concatenate([1 + np.arange(ranking.documents.shape[1]) for ranking in rankings])
    scores = np.tile(1 / (RRF_K + ranks), (len(documents), 1))
    order = np.argsort(documents, axis=1, kind="stable")
    documents, scores = (np.take_along_axis(array, order, axis=1) for array in (documents, scores))
    scores[documents == NOTHING] = 0.0
    # Repeated documents are adjacent now; their scores are added up in the first column of each.
    for column in range(documents.shape[1] - 1, 0, -1):
        same = documents[:, column] == documents[:, column - 1]
        scores[same, column - 1] += scores[same, column]
        documents[same, column], scores[same, column] = NOTHING, 0.0
    missing = max(0, depth - documents.shape[1])
    documents = np.pad(documents, ((0, 0), (0, missing)), constant_values=NOTHING)
    return RankedLists.ordered(documents, np.pad(scores, ((0, 0), (0, missing)))).part(slice(None), depth)


def union(rankings: Sequence[RankedLists]) -> np.ndarray:
    """Return the union (Q, m) of the rankings' document rows, ascending and padded on the left with NOTHING."""
    documents = np.sort(np.concatenate([ranking.documents for ranking in rankings], axis=1), axis=1)
    repeated = np.diff(documents, axis=1, prepend=NOTHING - 1) == 0
    documents = np.sort(np.where(repeated, NOTHING, documents), axis=1)
    return documents[:, (documents != NOTHING).any(axis=0)]


def z_scores(scores: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """Return an engine's scores (Q, m) float32 with mean 0 and variance 1 over each query's top 100."""
    best = np.where(documents == NOTHING, -np.inf, scores)
    if best.shape[1] > Z_SCORE_DEPTH:
        best = np.partition(best, best.shape[1] - Z_SCORE_DEPTH, axis=1)[:, -Z_SCORE_DEPTH:]
    known = np.ma.masked_invalid(best.astype(np.float64))
    mean, deviation = (
        np.ma.filled(value, 0.0) for value in (known.mean(1, keepdims=True), known.std(1, keepdims=True))
    )
    return ((scores - mean) / np.maximum(deviation, 1e-6)).astype(np.float32)


def reciprocal_ranks(scores: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """Return 1 / (60 + rank) (Q, m) float64 of documents by an engine's scores, 0 for NOTHING; ties by column."""
    order = np.argsort(np.where(documents == NOTHING, np.inf, -scores), axis=1, kind="stable")
    values = np.empty(scores.shape)
    np.put_along_axis(values, order, np.broadcast_to(1 / (RRF_K + 1 + np.arange(order.shape[1])), order.shape), axis=1)
    return np.where(documents == NOTHING, 0.0, values)


def ordered(documents: np.ndarray, scores: np.ndarray, depth: int) -> RankedLists:
    """Return the top `depth` of distinct documents (Q, m) by their scores (Q, m); ties in order of rows."""
    keys = sort_keys(np.where(documents == NOTHING, -np.inf, scores).astype(np.float32), np.maximum(documents, 0))
    best = RankedLists.best(keys, depth)
    nothing = np.isneginf(best.scores)
    rows, values = np.where(nothing, NOTHING, best.documents), np.where(nothing, np.float32(0), best.scores)
    missing = ((0, 0), (0, max(0, depth - rows.shape[1])))
    return RankedLists(np.pad(rows, missing, constant_values=NOTHING), np.pad(values, missing))
