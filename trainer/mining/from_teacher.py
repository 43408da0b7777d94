"""Groups for distillation: candidates of queries without judgements, in the order of a teacher's scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from trainer.data.groups import Group
from trainer.retriever import NOTHING, Candidates


def sample_queries(candidates: Candidates, count: int, seed: int) -> Candidates:
    """Return the candidates of at most `count` randomly sampled queries, in the given order."""
    size = len(candidates.queries)
    chosen = np.random.default_rng(seed).choice(size, min(count, size), replace=False)
    return candidates.select(np.sort(chosen))


def with_source_documents(candidates: Candidates, source: Sequence[int]) -> Candidates:
    """Return the candidates with the document from which each pseudo-query was taken (rows, NOTHING for none).

    A source document that was not retrieved takes the last rank, with the score of the candidate at that rank. The row
    is NOTHING for a document that has no text besides the query.
    """
    names = ("documents", "scores", "similarities", "ranks")
    documents, scores, similarities, ranks = (getattr(candidates, name).copy() for name in names)
    lengths = (documents != NOTHING).sum(axis=1)
    wanted = np.array(source)[:, None]
    missing = np.flatnonzero(~((documents == wanted) | (wanted == NOTHING)).any(axis=1))
    last = np.minimum(lengths[missing], documents.shape[1] - 1)
    documents[missing, last] = np.array(source)[missing]
    scores[missing, last] = scores[missing, np.maximum(lengths[missing] - 1, 0)]
    similarities[missing, last], ranks[missing, last] = np.nan, 0
    return replace(candidates, documents=documents, scores=scores, similarities=similarities, ranks=ranks)


def rescale_to_logits(standardised: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Return standardised scores (queries, depth) with each query's mean and deviation of `logits`; float32.

    Both have the shape (queries, depth); where a logit is -inf, the result is.
    """
    finite = np.isfinite(logits)
    known = np.ma.masked_array(logits, ~finite, dtype=np.float64)
    deviation, mean = (
        np.ma.filled(values, 0.0) for values in (known.std(1, keepdims=True), known.mean(1, keepdims=True))
    )
    return np.where(finite, np.where(finite, standardised, 0.0) * deviation + mean, -np.inf).astype(np.float32)


def groups_by_teacher(candidates: Candidates, scores: np.ndarray) -> list[Group]:
    """Return a group for each query with at least two candidates, ordered by the teacher's scores (queries, depth).

    Candidates without a score (NaN) are left out.

    Grades are reversed ranks, not judgements. Of the losses only margin_mse uses them: because all grades differ, it
    compares every two documents.
    """
    groups = []
    for index, query in enumerate(candidates.queries.tolist()):
        order = np.argsort(-scores[index], kind="stable")
        order = order[np.isfinite(scores[index, order])]
        *better, last = candidates.documents[index, order].tolist() or [NOTHING]
        if better:
            teacher = scores[index, order].tolist()
            groups.append(Group(query, better, list(range(len(better), 0, -1)), [last], teacher))
    return groups
