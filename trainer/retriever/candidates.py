"""The result of the first stage: ranked lists of document rows, and candidates with similarities for mining."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from trainer.retriever.embeddings import Embeddings

PAIRS_AT_ONCE = 8192  # (query, document) pairs whose vectors are in memory at a time
NOTHING = -1  # padding at the end of a list with fewer documents than the depth


@dataclass(frozen=True)
class RankedLists:
    """The ranked lists of Q queries: document rows (Q, k) int32, best first, and their scores (Q, k) float32."""

    documents: np.ndarray
    scores: np.ndarray

    @classmethod
    def ordered(cls, documents: np.ndarray, scores: np.ndarray) -> RankedLists:
        """Sort each list by descending score, ties by row whatever the engine's own order; NOTHING comes last."""
        order = np.lexsort((documents, np.where(documents == NOTHING, np.inf, -scores)))
        return cls(
            np.take_along_axis(documents, order, axis=1).astype(np.int32),
            np.take_along_axis(scores, order, axis=1).astype(np.float32),
        )

    @classmethod
    def best(cls, keys: np.ndarray, depth: int) -> RankedLists:
        """Return the `depth` largest of each query's `sort_keys` (Q, n) as lists; all of them if n is smaller."""
        if keys.shape[1] > depth:
            keys = np.partition(keys, keys.shape[1] - depth, axis=1)[:, -depth:]
        return cls(*from_keys(np.sort(keys, axis=1)[:, ::-1]))

    def part(self, queries: slice | np.ndarray, depth: int | None = None) -> RankedLists:
        """Return the lists of some queries, cut at `depth` (None: not cut)."""
        return RankedLists(self.documents[queries, :depth], self.scores[queries, :depth])

    def without(self, excluded: Sequence[Sequence[int]], depth: int) -> RankedLists:
        """Return the lists without each query's `excluded` document rows, cut at `depth`."""
        if not any(excluded):
            return self.part(slice(None), depth)
        documents = self.documents.copy()
        for index, rows in enumerate(excluded):
            documents[index, np.isin(documents[index], rows)] = NOTHING
        scores = np.where(documents == NOTHING, np.float32(0), self.scores)
        order = np.argsort(documents == NOTHING, axis=1, kind="stable")[:, :depth]
        return RankedLists(np.take_along_axis(documents, order, axis=1), np.take_along_axis(scores, order, axis=1))


def sort_keys(scores: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return int64 keys that sort like float32 scores and, at equal scores, by descending row.

    The upper 32 bits are the score's, the lower 32 the row's, so one integer comparison orders by both.
    """
    bits = np.ascontiguousarray(scores + np.float32(0)).view(np.int32).astype(np.int64)  # + 0 turns -0 into 0
    ordered = np.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return (ordered << 32) | (np.int64(0xFFFFFFFF) - rows)


def from_keys(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows (int32) and scores (float32) that `sort_keys` encoded."""
    bits = (keys >> 32).astype(np.int32)
    scores = np.where(bits < 0, bits ^ 0x7FFFFFFF, bits).view(np.float32)
    return (0xFFFFFFFF - (keys & 0xFFFFFFFF)).astype(np.int32), scores


@dataclass(frozen=True)
class Candidates:
    """The candidates of Q queries from the first stage, best first.

    `similarities` are comparable between candidates and positives: cosines if there is a bi-encoder, else the
    engine's own scores. `positive_similarity` is that of the query's most similar positive, NaN where unknown. `ranks`
    are the document's ranks in the lists of the single `engines`.
    """

    queries: np.ndarray  # (Q,) int32, query rows
    documents: np.ndarray  # (Q, depth) int32, document rows, padded with NOTHING
    scores: np.ndarray  # (Q, depth) float32, descending
    similarities: np.ndarray  # (Q, depth) float32
    positive_similarity: np.ndarray  # (Q,) float32
    ranks: np.ndarray  # (Q, depth, engines) int16, from 1; 0 where the engine did not retrieve the document
    engines: np.ndarray  # (engines,) names of the engines, e.g. dense and bm25

    def save(self, path: Path) -> None:
        """Write the arrays atomically as .npz."""
        partial = path.with_name(f".{path.name}")
        np.savez(partial, **{field.name: getattr(self, field.name) for field in fields(self)})
        partial.replace(path)

    @classmethod
    def load(cls, path: Path) -> Candidates:
        """Load candidates written by `save`."""
        with np.load(path) as arrays:
            return cls(**{field.name: arrays[field.name] for field in fields(cls)})

    def found(self, index: int, depth: int | None = None) -> list[int]:
        """Return the document rows of the query at `index`, best first, cut at `depth`."""
        documents = self.documents[index, :depth]
        return documents[documents != NOTHING].tolist()

    def select(self, indices: Sequence[int] | np.ndarray) -> Candidates:
        """Return the candidates of the queries at `indices`, in that order."""
        chosen = {field.name: getattr(self, field.name)[indices] for field in fields(self) if field.name != "engines"}
        return replace(self, **chosen)

    def top(self, depth: int) -> Candidates:
        """Return the top `depth` candidates of each query."""
        cut = {name: getattr(self, name)[:, :depth] for name in ("documents", "scores", "similarities", "ranks")}
        return replace(self, **cut)

    def scored(self, score: Callable[[list[tuple[int, int]]], np.ndarray]) -> np.ndarray:
        """Return the scores (Q, depth) float32 that `score` gives all candidates, -inf at the padding.

        `score` maps a list of (query row, document row) pairs to their scores (pairs,).
        """
        indices = np.argwhere(self.documents != NOTHING)
        rows = [(int(self.queries[query]), int(self.documents[query, rank])) for query, rank in indices]
        scores = np.full(self.documents.shape, -np.inf, dtype=np.float32)
        scores[tuple(indices.T)] = score(rows)
        return scores

    def joined(self, other: Candidates) -> Candidates:
        """Return these candidates followed by those of `other`, which have the same engines and depth."""
        assert self.engines.tolist() == other.engines.tolist()
        names = [field.name for field in fields(self) if field.name != "engines"]
        return replace(self, **{name: np.concatenate([getattr(self, name), getattr(other, name)]) for name in names})


def as_candidates(
    ranking: RankedLists,
    lists: Mapping[str, RankedLists],
    queries: Sequence[int],
    qrels: Mapping[int, Mapping[int, int]],
    embeddings: tuple[np.ndarray, Embeddings] | None,
) -> Candidates:
    """Return the ranking of the given queries as candidates, with similarities and the engines' ranks.

    `lists` are the rankings of the single engines, `embeddings` the vectors of the queries (Q, dimensions) and of all
    documents. Without embeddings the ranking's own scores are the similarities, and that of a positive which was not
    retrieved is unknown.
    """
    ranks = {engine: ranks_in(own.documents, ranking.documents) for engine, own in lists.items()}
    positives = [
        (index, row) for index, query in enumerate(queries) for row, grade in qrels[query].items() if grade > 0
    ]
    indices, rows = np.array(positives, dtype=np.int64).reshape(-1, 2).T  # reshaped, because there may be none
    best = np.full(len(queries), np.nan, dtype=np.float32)
    if embeddings is None:
        similarities = np.where(ranking.documents == NOTHING, np.nan, ranking.scores).astype(np.float32)
        listed = ranking.documents[indices] == rows[:, None]
        np.fmax.at(best, indices, np.where(listed, similarities[indices], -np.inf).max(axis=1, initial=-np.inf))
        best[np.isneginf(best)] = np.nan
    else:
        similarities = at_ranks(lists["dense"].scores, ranks["dense"])
        others = np.argwhere(np.isnan(similarities) & (ranking.documents != NOTHING))
        similarities[tuple(others.T)] = cosines(*embeddings, others[:, 0], ranking.documents[tuple(others.T)])
        np.fmax.at(best, indices, cosines(*embeddings, indices, rows))
    return Candidates(
        queries=np.asarray(queries, dtype=np.int32),
        documents=ranking.documents,
        scores=ranking.scores,
        similarities=similarities,
        positive_similarity=best,
        ranks=np.stack(list(ranks.values()), axis=2),
        engines=np.array(list(lists)),
    )


def at_ranks(scores: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """Return the scores (Q, depth) float32 at `ranks` (Q, depth) in `scores` (Q, k); NaN where the rank is 0."""
    taken = np.take_along_axis(scores, np.maximum(ranks.astype(np.int64) - 1, 0), axis=1)
    return np.where(ranks > 0, taken, np.float32(np.nan))


def cosines(queries: np.ndarray, documents: Embeddings, indices: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return the cosines (pairs,) float32 of the query vectors at `indices` (pairs,) with document `rows` (pairs,)."""
    cosines = np.empty(len(rows), dtype=np.float32)
    for start in range(0, len(rows), PAIRS_AT_ONCE):
        block = slice(start, start + PAIRS_AT_ONCE)
        cosines[block] = np.einsum("ij,ij->i", queries[indices[block]], documents.rows(rows[block]))
    return cosines


def ranks_in(own: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """Return the ranks (Q, depth) int16 of `documents` (Q, depth) in the lists `own` (Q, k): from 1; 0 if missing."""
    span = max(int(own.max(initial=0)), int(documents.max(initial=0))) + 2
    keys, wanted = (
        np.arange(len(rows), dtype=np.int64)[:, None] * span + np.where(rows == NOTHING, span - 1, rows)
        for rows in (own, documents)
    )
    order = np.argsort(keys, axis=None, kind="stable")
    position = np.searchsorted(keys.ravel()[order], wanted)
    hit = order[np.minimum(position, len(order) - 1)]
    listed = (keys.ravel()[hit] == wanted) & (documents != NOTHING)
    return np.where(listed, hit % max(1, own.shape[1]) + 1, 0).astype(np.int16)
