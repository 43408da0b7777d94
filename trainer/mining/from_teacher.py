"""Groups without labels: candidates of queries that nobody judged, in the order of a teacher's scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from trainer.data.groups import Group
from trainer.retriever import NOTHING, Candidates


def draw(candidates: Candidates, wanted: int, seed: int) -> Candidates:
    """At most `wanted` of the queries, drawn by seed, in their order."""
    size = len(candidates.queries)
    chosen = np.random.default_rng(seed).choice(size, min(wanted, size), replace=False)
    return candidates.of(np.sort(chosen))


def with_own(candidates: Candidates, own: Sequence[int]) -> Candidates:
    """The candidates with each query's own document, in the last place where the first stage did not put it higher.

    There it has the score of the place, which is more than the first stage gave it. NOTHING stands for no document,
    where the query is all that its own says.
    """
    names = ("documents", "scores", "similarities", "ranks")
    documents, scores, similarities, ranks = (getattr(candidates, name).copy() for name in names)
    found = (documents != NOTHING).sum(axis=1)
    wanted = np.array(own)[:, None]
    lacks = np.flatnonzero(~((documents == wanted) | (wanted == NOTHING)).any(axis=1))
    last = np.minimum(found[lacks], documents.shape[1] - 1)
    documents[lacks, last] = np.array(own)[lacks]
    scores[lacks, last] = scores[lacks, np.maximum(found[lacks] - 1, 0)]
    similarities[lacks, last], ranks[lacks, last] = np.nan, 0
    return replace(candidates, documents=documents, scores=scores, similarities=similarities, ranks=ranks)


def on_scale(standardised: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Standardised scores (queries, depth) with the mean and the spread of each query's logits; -inf stays."""
    found = np.isfinite(logits)
    known = np.ma.masked_array(logits, ~found, dtype=np.float64)
    spread, mean = (np.ma.filled(values, 0.0) for values in (known.std(1, keepdims=True), known.mean(1, keepdims=True)))
    return np.where(found, np.where(found, standardised, 0.0) * spread + mean, -np.inf).astype(np.float32)


def groups(candidates: Candidates, scores: np.ndarray) -> list[Group]:
    """Each query with two candidates or more as a group, in the order of the teacher's scores (queries, depth).

    Grades are places in that order and no judgements: of the losses only margin_mse reads them, and takes the
    difference of every two documents.
    """
    made = []
    for place, query in enumerate(candidates.queries.tolist()):
        order = np.argsort(-scores[place], kind="stable")[: len(candidates.found(place))]
        *better, last = candidates.documents[place, order].tolist() or [NOTHING]
        if better:
            teacher = scores[place, order].tolist()
            made.append(Group(query, better, list(range(len(better), 0, -1)), [last], teacher))
    return made
