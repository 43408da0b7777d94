"""A cross-encoder's grades of documents, from scores that have no common scale and so are compared within the query."""

from __future__ import annotations

from collections.abc import Mapping

BEST = 3  # the highest grade, as language models give them


def grades_of_scores(own: int, scores: Mapping[int, float]) -> dict[int, int]:
    """Return a cross-encoder's grades of a query's documents, {row: score} with the query's own document `own`.

    Others answer the query if they score as high as its own. If most of them do, the query is too vague for its
    document to be the answer, and the document's grade is 0.
    """
    others = [row for row in scores if row != own]
    better = [row for row in others if scores[row] >= scores[own]]
    grades = dict.fromkeys(others, 0) | dict.fromkeys(better, BEST)
    return grades | {own: 0 if 2 * len(better) > len(others) else BEST}
