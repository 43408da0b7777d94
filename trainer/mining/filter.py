"""Filtering of the train queries' candidates: usable as a negative, or the reason why not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from trainer.data import Collection
from trainer.recipe import Mine
from trainer.retriever import NOTHING, Candidates

# Verdicts on a candidate. If several apply, later assignments in `filter_candidates` take precedence.
USABLE, POSITIVE, NEGATIVE, DUPLICATE, ABOVE_SHARE, TEACHER, OUTSIDE, NO_CANDIDATE, UNSCORED = range(9)
FEW = 8
LIKELY_FALSE_NEGATIVE = (DUPLICATE, ABOVE_SHARE, TEACHER)

Score = Callable[[Sequence[tuple[int, int]]], np.ndarray]  # logits of (query row, document row) pairs


@dataclass(frozen=True)
class Verdicts:
    """The verdict on every candidate of every train query, with the teacher's scores.

    `teacher` is NaN for candidates without a teacher score. `positive_teacher` is the score of the query's best
    positive, NaN where unknown.
    """

    candidates: Candidates
    reasons: np.ndarray  # (queries, depth) uint8, USABLE or another verdict
    window: np.ndarray  # (depth,) bool, the rank window: ranks from which negatives are sampled
    teacher: np.ndarray  # (queries, depth) float32 logits
    positive_teacher: np.ndarray  # (queries,) float32 logits


def filter_candidates(
    section: Mine, collection: Collection, candidates: Candidates, teacher: Score | None = None
) -> Verdicts:
    """Return a verdict on every candidate: usable as a negative, or the reason why not."""
    documents, similarities = candidates.documents, candidates.similarities
    positive = candidates.positive_similarity[:, None]
    reasons = np.full(documents.shape, USABLE, dtype=np.uint8)
    # In order of increasing precedence. The share is taken as a gap below the positive's similarity, because a share of
    # a negative similarity would be above it. NaN, where the positive's similarity is unknown, compares as False.
    if section.max_share_of_positive is not None:
        gap = (1 - section.max_share_of_positive) * np.abs(positive)
        reasons[similarities > positive - gap] = ABOVE_SHARE
    ranks = np.arange(1, documents.shape[1] + 1)
    window = (section.first_rank <= ranks) & (ranks <= section.last_rank)
    reasons[:, ~window] = OUTSIDE
    _mark_labelled(collection, candidates, reasons)
    reasons[documents == NOTHING] = NO_CANDIDATE
    to_score = window & np.isin(reasons, (USABLE, ABOVE_SHARE))
    scores, best = _teacher_scores(collection, candidates, to_score, teacher)
    if section.teacher_margin is not None:
        reasons[(reasons == USABLE) & (scores > best[:, None] - section.teacher_margin)] = TEACHER
    if teacher is not None:
        reasons[to_score & (reasons == USABLE) & np.isnan(scores)] = UNSCORED
    return Verdicts(candidates, reasons, window, scores, best)


def _mark_labelled(collection: Collection, candidates: Candidates, reasons: np.ndarray) -> None:
    """Set the reasons of judged documents and of near-duplicates of a positive, in place."""
    for index, query in enumerate(candidates.queries.tolist()):
        documents, positives = candidates.documents[index], collection.positives("train", query)
        alike = collection.first_alike[documents]
        own = collection.first_alike[relevant_or_self(collection, query)].tolist()
        reasons[index, _among(own, alike)] = DUPLICATE
        # Judged not relevant by a person: used as a negative whatever its rank or similarity.
        reasons[index, _among(collection.judged_negatives("train", query), documents)] = NEGATIVE
        reasons[index, _among(positives, documents)] = POSITIVE


def _among(some: Sequence[int], rows: np.ndarray) -> np.ndarray:
    """Return which rows (n,) are among some; comparing up to 8 takes 1/9 to 1/2 of the time of `np.isin`."""
    if len(some) > FEW:
        return np.isin(rows, some)
    found = np.zeros(len(rows), dtype=bool)
    for one in some:
        found |= rows == one
    return found


def relevant_or_self(collection: Collection, query: int) -> list[int]:
    """Return document rows of which no negative of a train query may be a near-duplicate.

    These are its positives, the positives of train queries with the same text, and documents that are the query itself.
    """
    equal = collection.positives_of_equal_queries("train", query)
    return [*collection.positives("train", query), *equal, *collection.self_documents.get(query, ())]


def _teacher_scores(
    collection: Collection, candidates: Candidates, to_score: np.ndarray, teacher: Score | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the teacher's logits of the candidates in the mask (queries, depth) and of the best positives (queries,).

    Both are float32, NaN where not scored.
    """
    scores = np.full(candidates.documents.shape, np.nan, dtype=np.float32)
    best = np.full(len(candidates.queries), np.nan, dtype=np.float32)
    if teacher is None:
        return scores, best
    queries = candidates.queries.tolist()
    positives = [(index, row) for index, query in enumerate(queries) for row in collection.positives("train", query)]
    marked = np.argwhere(to_score)
    pairs = [(queries[index], row) for index, row in positives]
    pairs += [(queries[index], int(candidates.documents[index, rank])) for index, rank in marked]
    logits = teacher(pairs)
    np.fmax.at(best, [index for index, _ in positives], logits[: len(positives)])
    scores[tuple(marked.T)] = logits[len(positives) :]
    return scores, best
