"""Several engines' rankings made one: by reciprocal ranks, or by a weighted sum of standardised scores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trainer.retriever.candidates import NOTHING, Ranking, sort_keys

STANDARD_DEPTH = 100  # documents of a query, an engine's best, over which its scores are standardised
RRF_K = 60  # Cormack, Clarke and Büttcher, SIGIR 2009


def fuse(rankings: Sequence[Ranking], depth: int) -> Ranking:
    """Fuse by reciprocal rank: a document's score is the sum of 1 / (60 + rank) over the lists that hold it."""
    documents = np.concatenate([ranking.documents for ranking in rankings], axis=1)
    ranks = np.concatenate([1 + np.arange(ranking.documents.shape[1]) for ranking in rankings])
    scores = np.tile(1 / (RRF_K + ranks), (len(documents), 1))
    order = np.argsort(documents, axis=1, kind="stable")
    documents, scores = (np.take_along_axis(array, order, axis=1) for array in (documents, scores))
    scores[documents == NOTHING] = 0.0
    # A document that several lists hold stands several times in a row now; the first of them takes the sum.
    for column in range(documents.shape[1] - 1, 0, -1):
        same = documents[:, column] == documents[:, column - 1]
        scores[same, column - 1] += scores[same, column]
        documents[same, column], scores[same, column] = NOTHING, 0.0
    missing = max(0, depth - documents.shape[1])
    documents = np.pad(documents, ((0, 0), (0, missing)), constant_values=NOTHING)
    return Ranking.ordered(documents, np.pad(scores, ((0, 0), (0, missing)))).part(slice(None), depth)


def union(rankings: Sequence[Ranking]) -> np.ndarray:
    """Return the documents (Q, m) that any of the rankings lists, in order of rows behind NOTHING, which fills up."""
    documents = np.sort(np.concatenate([ranking.documents for ranking in rankings], axis=1), axis=1)
    repeated = np.diff(documents, axis=1, prepend=NOTHING - 1) == 0
    documents = np.sort(np.where(repeated, NOTHING, documents), axis=1)
    return documents[:, (documents != NOTHING).any(axis=0)]


def standardised(scores: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """Return scores (Q, m) float32 of an engine with mean 0 and variance 1 over its best 100 of each query."""
    best = np.where(documents == NOTHING, -np.inf, scores)
    if best.shape[1] > STANDARD_DEPTH:
        best = np.partition(best, best.shape[1] - STANDARD_DEPTH, axis=1)[:, -STANDARD_DEPTH:]
    known = np.ma.masked_invalid(best.astype(np.float64))
    mean, spread = (np.ma.filled(value, 0.0) for value in (known.mean(1, keepdims=True), known.std(1, keepdims=True)))
    return ((scores - mean) / np.maximum(spread, 1e-6)).astype(np.float32)


def reciprocal_ranks(scores: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """Return 1 / (60 + rank) of documents (Q, m) by an engine's scores, 0 for NOTHING; ties rank in order of rows."""
    order = np.argsort(np.where(documents == NOTHING, np.inf, -scores), axis=1, kind="stable")
    values = np.empty(scores.shape)
    np.put_along_axis(values, order, np.broadcast_to(1 / (RRF_K + 1 + np.arange(order.shape[1])), order.shape), axis=1)
    return np.where(documents == NOTHING, 0.0, values)


def ordered(documents: np.ndarray, scores: np.ndarray, depth: int) -> Ranking:
    """Return the best `depth` of documents (Q, m), each listed once, by their scores; ties in order of rows."""
    keys = sort_keys(np.where(documents == NOTHING, -np.inf, scores).astype(np.float32), np.maximum(documents, 0))
    best = Ranking.best(keys, depth)
    nothing = np.isneginf(best.scores)
    rows, values = np.where(nothing, NOTHING, best.documents), np.where(nothing, np.float32(0), best.scores)
    missing = ((0, 0), (0, max(0, depth - rows.shape[1])))
    return Ranking(np.pad(rows, missing, constant_values=NOTHING), np.pad(values, missing))
