"""Several engines' rankings made one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trainer.retriever.candidates import NOTHING, Ranking

RRF_K = 60  # Cormack, Clarke and Büttcher, SIGIR 2009


def fuse(rankings: Sequence[Ranking], depth: int) -> Ranking:
    """Reciprocal rank fusion: a document's score is the sum of 1 / (60 + rank) over the lists that hold it."""
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
