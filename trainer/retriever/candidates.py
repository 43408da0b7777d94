"""What the first stage hands on: lists of document rows with scores, and what mining compares in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from trainer.retriever.embeddings import Embeddings

PAIRS_AT_ONCE = 8192  # whose vectors are in memory together
NOTHING = -1  # fills a row of candidates where fewer were found than asked


@dataclass(frozen=True)
class Ranking:
    """One engine's answer: (Q, k) document rows int32, best first, and their scores float32."""

    documents: np.ndarray
    scores: np.ndarray

    @classmethod
    def ordered(cls, documents: np.ndarray, scores: np.ndarray) -> Ranking:
        """Sort each list by score, equal scores by row, so that no engine's habits decide ties; NOTHING goes last."""
        order = np.lexsort((documents, np.where(documents == NOTHING, np.inf, -scores)))
        return cls(
            np.take_along_axis(documents, order, axis=1).astype(np.int32),
            np.take_along_axis(scores, order, axis=1).astype(np.float32),
        )

    @classmethod
    def best(cls, keys: np.ndarray, depth: int) -> Ranking:
        """The `depth` best of each query's `sort_keys` (Q, n), in their order; all of them where n is smaller."""
        if keys.shape[1] > depth:
            keys = np.partition(keys, keys.shape[1] - depth, axis=1)[:, -depth:]
        return cls(*from_keys(np.sort(keys, axis=1)[:, ::-1]))

    def part(self, queries: slice | np.ndarray, depth: int | None = None) -> Ranking:
        """Some of the queries, at most `depth` documents each (None: all)."""
        return Ranking(self.documents[queries, :depth], self.scores[queries, :depth])

    def without(self, excluded: Sequence[Sequence[int]], depth: int) -> Ranking:
        """Leave out the document rows of each list that are excluded from it and cut the lists at `depth`."""
        if not any(excluded):
            return self.part(slice(None), depth)
        documents = self.documents.copy()
        for place, rows in enumerate(excluded):
            documents[place, np.isin(documents[place], rows)] = NOTHING
        scores = np.where(documents == NOTHING, np.float32(0), self.scores)
        order = np.argsort(documents == NOTHING, axis=1, kind="stable")[:, :depth]
        return Ranking(np.take_along_axis(documents, order, axis=1), np.take_along_axis(scores, order, axis=1))


def sort_keys(scores: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Integers (int64) in the order of float32 scores and, where those are equal, of falling rows.

    A score's bits stand above those of its row, so one comparison of integers orders both.
    """
    bits = np.ascontiguousarray(scores + np.float32(0)).view(np.int32).astype(np.int64)  # + 0 makes -0 a 0
    ordered = np.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    return (ordered << 32) | (np.int64(0xFFFFFFFF) - rows)


def from_keys(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows (int32) and the float32 scores of `sort_keys`."""
    bits = (keys >> 32).astype(np.int32)
    scores = np.where(bits < 0, bits ^ 0x7FFFFFFF, bits).view(np.float32)
    return (0xFFFFFFFF - (keys & 0xFFFFFFFF)).astype(np.int32), scores


@dataclass(frozen=True)
class Candidates:
    """What the first stage returned for Q queries, best first.

    `similarities` is on a scale on which candidates and positives compare (cosine where there is a bi-encoder, else
    the engine's own score); `positive_similarity` is that of the query's most similar positive, NaN where unknown.
    `ranks` tells where each of the `engines` had the document in a list of its own, which mining draws from.
    """

    queries: np.ndarray  # (Q,) int32, query rows
    documents: np.ndarray  # (Q, depth) int32, document rows; NOTHING at the end of short lists
    scores: np.ndarray  # (Q, depth) float32, by which the list is ordered
    similarities: np.ndarray  # (Q, depth) float32
    positive_similarity: np.ndarray  # (Q,) float32
    ranks: np.ndarray  # (Q, depth, engines) int16, from 1; 0 where an engine did not list the document
    engines: np.ndarray  # (engines,) names of the engines, e.g. dense and bm25

    def save(self, path: Path) -> None:
        """Write as .npz, whole or not at all."""
        partial = path.with_name(f".{path.name}")
        np.savez(partial, **{field.name: getattr(self, field.name) for field in fields(self)})
        partial.replace(path)

    @classmethod
    def load(cls, path: Path) -> Candidates:
        """Read what `save` wrote."""
        with np.load(path) as arrays:
            return cls(**{field.name: arrays[field.name] for field in fields(cls)})

    def found(self, place: int, depth: int | None = None) -> list[int]:
        """Document rows of the query at `place`, best first, cut at `depth`."""
        documents = self.documents[place, :depth]
        return documents[documents != NOTHING].tolist()

    def of(self, places: Sequence[int] | np.ndarray) -> Candidates:
        """The queries at some places, in their order."""
        chosen = {field.name: getattr(self, field.name)[places] for field in fields(self) if field.name != "engines"}
        return replace(self, **chosen)

    def top(self, depth: int) -> Candidates:
        """The same queries with at most `depth` candidates each."""
        cut = {name: getattr(self, name)[:, :depth] for name in ("documents", "scores", "similarities", "ranks")}
        return replace(self, **cut)

    def scored(self, score: Callable[[list[tuple[int, int]]], np.ndarray]) -> np.ndarray:
        """Scores (queries, depth) float32 of all candidates, -inf where there is none.

        `score` gives those of a list of (query row, document row) pairs.
        """
        places = np.argwhere(self.documents != NOTHING)
        rows = [(int(self.queries[query]), int(self.documents[query, rank])) for query, rank in places]
        scores = np.full(self.documents.shape, -np.inf, dtype=np.float32)
        scores[tuple(places.T)] = score(rows)
        return scores

    def joined(self, other: Candidates) -> Candidates:
        """These queries and then those of `other`, which the same engines found as deep."""
        assert self.engines.tolist() == other.engines.tolist()
        names = [field.name for field in fields(self) if field.name != "engines"]
        return replace(self, **{name: np.concatenate([getattr(self, name), getattr(other, name)]) for name in names})


def as_candidates(
    ranking: Ranking,
    lists: Mapping[str, Ranking],
    queries: Sequence[int],
    qrels: Mapping[int, Mapping[int, int]],
    embeddings: tuple[np.ndarray, Embeddings] | None,
) -> Candidates:
    """The ranking of the given queries with what mining needs to know of it.

    `lists` are the engines' own rankings, `embeddings` (the queries' vectors, all documents'). Without embeddings the
    ranking's own scores serve as similarities, and a positive that was not retrieved has no known one.
    """
    ranks = {engine: ranks_in(own.documents, ranking.documents) for engine, own in lists.items()}
    positives = [
        (place, row) for place, query in enumerate(queries) for row, grade in qrels[query].items() if grade > 0
    ]
    places, rows = np.array(positives, dtype=np.int64).reshape(-1, 2).T  # there may be none
    best = np.full(len(queries), np.nan, dtype=np.float32)
    if embeddings is None:
        similarities = np.where(ranking.documents == NOTHING, np.nan, ranking.scores).astype(np.float32)
        listed = ranking.documents[places] == rows[:, None]
        np.fmax.at(best, places, np.where(listed, similarities[places], -np.inf).max(axis=1, initial=-np.inf))
        best[np.isneginf(best)] = np.nan
    else:
        similarities = at_ranks(lists["dense"].scores, ranks["dense"])
        others = np.argwhere(np.isnan(similarities) & (ranking.documents != NOTHING))
        similarities[tuple(others.T)] = cosines(*embeddings, others[:, 0], ranking.documents[tuple(others.T)])
        np.fmax.at(best, places, cosines(*embeddings, places, rows))
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
    """Return of scores (Q, k) those at ranks (Q, depth); NaN where the rank is 0."""
    taken = np.take_along_axis(scores, np.maximum(ranks.astype(np.int64) - 1, 0), axis=1)
    return np.where(ranks > 0, taken, np.float32(np.nan))


def cosines(queries: np.ndarray, documents: Embeddings, places: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return the cosines (pairs,) of the queries at `places` with the documents in `rows`."""
    cosines = np.empty(len(rows), dtype=np.float32)
    for start in range(0, len(rows), PAIRS_AT_ONCE):
        some = slice(start, start + PAIRS_AT_ONCE)
        cosines[some] = np.einsum("ij,ij->i", queries[places[some]], documents.rows(rows[some]))
    return cosines


def ranks_in(own: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """Return the rank of each of (Q, depth) document rows in the same query's list of `own` (Q, k): from 1, or 0."""
    span = max(int(own.max(initial=0)), int(documents.max(initial=0))) + 2
    keys, wanted = (
        np.arange(len(rows), dtype=np.int64)[:, None] * span + np.where(rows == NOTHING, span - 1, rows)
        for rows in (own, documents)
    )
    order = np.argsort(keys, axis=None, kind="stable")
    place = np.searchsorted(keys.ravel()[order], wanted)
    hit = order[np.minimum(place, len(order) - 1)]
    listed = (keys.ravel()[hit] == wanted) & (documents != NOTHING)
    return np.where(listed, hit % max(1, own.shape[1]) + 1, 0).astype(np.int16)
