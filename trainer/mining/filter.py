"""What is said of every candidate of a train query: that it may serve as a negative, or why not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from trainer.data import Collection
from trainer.recipe import Mine
from trainer.retriever import NOTHING, Candidates

# What can be said of a candidate; the first that holds is its reason.
USABLE, POSITIVE, NEGATIVE, DUPLICATE, ABOVE_SHARE, TEACHER, OUTSIDE, NO_CANDIDATE = range(8)
SUSPICIOUS = (DUPLICATE, ABOVE_SHARE, TEACHER)

Score = Callable[[Sequence[tuple[int, int]]], np.ndarray]  # logits of (query row, document row) pairs


@dataclass(frozen=True)
class Judged:
    """A verdict on every candidate of every train query; arrays are (queries, depth) unless said otherwise.

    `teacher` is NaN where the teacher was not asked. `positive_similarity` and `positive_teacher` (queries,) are those
    of the query's best positive, NaN where unknown.
    """

    candidates: Candidates
    reasons: np.ndarray  # uint8, USABLE and so on
    window: np.ndarray  # bool (depth,), ranks from which negatives are drawn
    teacher: np.ndarray  # float32
    positive_teacher: np.ndarray  # float32


def judge(section: Mine, collection: Collection, candidates: Candidates, teacher: Score | None = None) -> Judged:
    """Say of every candidate whether it may serve as a negative, and if not, why."""
    documents, similarities = candidates.documents, candidates.similarities
    positive = candidates.positive_similarity[:, None]
    reasons = np.full(documents.shape, USABLE, dtype=np.uint8)
    # From the last reason to the first. A share of a negative similarity would lie above it; the gap to it is what
    # is meant. Where no positive is known to compare with, NaN compares as False.
    if section.max_share_of_positive is not None:
        gap = (1 - section.max_share_of_positive) * np.abs(positive)
        reasons[similarities > positive - gap] = ABOVE_SHARE
    ranks = np.arange(1, documents.shape[1] + 1)
    window = (section.first_rank <= ranks) & (ranks <= section.last_rank)
    reasons[:, ~window] = OUTSIDE
    _mark_known(collection, candidates, reasons)
    reasons[documents == NOTHING] = NO_CANDIDATE
    asked = window & np.isin(reasons, (USABLE, ABOVE_SHARE))
    scores, best = _ask(collection, candidates, asked, teacher)
    if section.teacher_margin is not None:
        reasons[(reasons == USABLE) & (scores > best[:, None] - section.teacher_margin)] = TEACHER
    return Judged(candidates, reasons, window, scores, best)


def _mark_known(collection: Collection, candidates: Candidates, reasons: np.ndarray) -> None:
    """Mark what is judged already, and documents with (nearly) the text of a positive."""
    for place, query in enumerate(candidates.queries.tolist()):
        documents, positives = candidates.documents[place], collection.positives("train", query)
        alike = collection.first_alike[documents]
        reasons[place, np.isin(alike, collection.first_alike[relevant_or_self(collection, query)])] = DUPLICATE
        # Somebody looked and said no: it is taken already, whatever its rank or similarity.
        reasons[place, np.isin(documents, collection.judged_negatives("train", query))] = NEGATIVE
        reasons[place, np.isin(documents, positives)] = POSITIVE


def relevant_or_self(collection: Collection, query: int) -> list[int]:
    """Return document rows that say what no negative of a train query may say.

    Those are its positives, those of other train queries with the same text, and documents that are the query itself.
    """
    equal = collection.positives_of_equal_queries("train", query)
    return [*collection.positives("train", query), *equal, *collection.self_documents.get(query, ())]


def _ask(
    collection: Collection, candidates: Candidates, asked: np.ndarray, teacher: Score | None
) -> tuple[np.ndarray, np.ndarray]:
    """The teacher's scores of the marked candidates (queries, depth), and of each query's best positive (queries,)."""
    scores = np.full(candidates.documents.shape, np.nan, dtype=np.float32)
    best = np.full(len(candidates.queries), np.nan, dtype=np.float32)
    if teacher is None:
        return scores, best
    queries = candidates.queries.tolist()
    positives = [(place, row) for place, query in enumerate(queries) for row in collection.positives("train", query)]
    marked = np.argwhere(asked)
    pairs = [(queries[place], row) for place, row in positives]
    pairs += [(queries[place], int(candidates.documents[place, rank])) for place, rank in marked]
    logits = teacher(pairs)
    np.fmax.at(best, [place for place, _ in positives], logits[: len(positives)])
    scores[tuple(marked.T)] = logits[len(positives) :]
    return scores, best
