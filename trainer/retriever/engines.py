"""The engines of the first stage: each searches all queries once, and their lists are fused under any settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial

import numpy as np

from trainer.data import Collection
from trainer.data.languages import LANGUAGE_SAMPLE, detect_language
from trainer.recipe import Retriever
from trainer.recipe.retriever import MINING_DEPTH
from trainer.retriever.bm25 import K1, Analyzer, B, Bm25
from trainer.retriever.candidates import NOTHING, RankedLists, at_ranks, cosines, ranks_in
from trainer.retriever.dense import search_dense
from trainer.retriever.embeddings import SHARD, Embeddings
from trainer.retriever.fusion import ordered, reciprocal_rank_fusion, reciprocal_ranks, union, z_scores
from trainer.retriever.trec_run import read_run

Indices = slice | np.ndarray
ALL = slice(None)
QUERIES_AT_ONCE = 4096  # queries whose document pools are in memory at a time: some 100 MB


@dataclass(frozen=True)
class Settings:
    """The settings of the first stage: BM25's parameters and the fusion weights of the engines."""

    k1: float = K1
    b: float = B
    drop_stop_words: bool = True
    stem: bool = True
    weights: Mapping[str, float] | None = None  # of the engines' z-scores; None: reciprocal rank fusion


class Engines:
    """The engines of a recipe over a collection, for the given query rows; `embeddings` are (queries', documents').

    Documents that are the query itself are excluded from every list and replaced by the next ones. `bm25` returns the
    counts of the corpus under an analyzer, if the caller keeps them.
    """

    def __init__(
        self,
        section: Retriever,
        collection: Collection,
        queries: Sequence[int],
        embeddings: tuple[Embeddings, Embeddings] | None,
        bm25: Callable[[Analyzer], Bm25] | None = None,
    ) -> None:
        self._section = section
        self._collection = collection
        self._embeddings = embeddings
        self.queries = queries
        self.depth = max(section.depth, MINING_DEPTH)
        self._excluded = [collection.self_documents.get(query, ()) for query in queries]
        self._search_depth = self.depth + max(map(len, self._excluded), default=0)
        # The counts of one analyzer are in memory at a time.
        self._bm25 = bm25 or lru_cache(maxsize=1)(partial(count_words, collection))

    @property
    def has_bm25(self) -> bool:
        """True if BM25 is one of the engines."""
        return self._section.has_bm25

    @property
    def names(self) -> list[str]:
        """The names of the engines, in the order of their lists."""
        return [*self._fixed, *(["bm25"] if self.has_bm25 else [])]

    @cached_property
    def analyzer(self) -> Analyzer:
        """The default analyzer for the language of the collection."""
        return Analyzer(language_of(self._section, self._collection))

    def lists(self, settings: Settings, indices: Indices = ALL) -> dict[str, RankedLists]:
        """Return each engine's own ranking of the queries at `indices`."""
        lists = {name: ranking.part(indices) for name, ranking in self._fixed.items()}
        if self.has_bm25:
            bm25 = self._bm25(self._analyzer(settings))
            ranking = bm25.search(self._texts(indices), self._search_depth, settings.k1, settings.b)
            excluded = [self._excluded[index] for index in np.arange(len(self.queries))[indices]]
            lists["bm25"] = ranking.without(excluded, self.depth)
        return lists

    @property
    def default_settings(self) -> Settings:
        """The baseline of tuning: the user's own run alone if there is one, else all engines fused by RRF."""
        return Settings(weights={"run": 1.0} if self._section.run is not None else None)

    @property
    def untuned_settings(self) -> Settings:
        """The settings without tuning: the default ones, or RRF of the run with the other engines with `fuse_run`."""
        return Settings() if self._section.fuse_run else self.default_settings

    def fused(self, lists: Mapping[str, RankedLists], settings: Settings) -> RankedLists:
        """Return the fused ranking of all queries; a single list is returned unchanged."""
        only = list(lists) if len(lists) == 1 else list(settings.weights or {})
        if len(only) == 1:
            return lists[only[0]]
        if settings.weights is None:
            return reciprocal_rank_fusion(list(lists.values()), self.depth)
        parts = []
        for start in range(0, len(self.queries), QUERIES_AT_ONCE):
            indices = np.arange(start, min(start + QUERIES_AT_ONCE, len(self.queries)))
            pool = self.pool({name: ranking.part(indices) for name, ranking in lists.items()}, settings, indices)
            parts.append(ordered(pool.documents, pool.fused(settings), self.depth))
        return RankedLists(
            *(np.concatenate([getattr(part, name) for part in parts]) for name in ("documents", "scores"))
        )

    def pool(self, lists: Mapping[str, RankedLists], settings: Settings, indices: np.ndarray) -> Pool:
        """Return the union of the lists of the queries at `indices`, scored by every engine.

        The bi-encoder and BM25 score every document. Documents missing from the user's run get its lowest score.
        """
        documents = union(list(lists.values()))
        scores = {}
        for name in (name for name in lists if name != "bm25"):
            own = lists[name]
            known = at_ranks(own.scores, ranks_in(own.documents, documents))
            if name == "dense":
                known = self._with_cosines(known, documents, indices)
            else:
                lowest = np.where(own.documents == NOTHING, np.inf, own.scores).min(axis=1, keepdims=True)
                known = np.where(np.isnan(known), np.where(np.isinf(lowest), 0, lowest), known)
            scores[name] = z_scores(known, documents)
        if not self.has_bm25:
            return Pool(documents, scores, None)
        return Pool(documents, scores, self._bm25(self._analyzer(settings)).scorer(self._texts(indices), documents))

    def _with_cosines(self, known: np.ndarray, documents: np.ndarray, indices: np.ndarray) -> np.ndarray:
        """Return the bi-encoder's scores (Q, m) float32 with the unknown ones (NaN) computed."""
        assert self._embeddings is not None
        vectors = self._embeddings[0].rows(indices)
        missing = np.argwhere(np.isnan(known) & (documents != NOTHING))
        known[tuple(missing.T)] = cosines(vectors, self._embeddings[1], missing[:, 0], documents[tuple(missing.T)])
        return np.nan_to_num(known)

    @cached_property
    def _fixed(self) -> dict[str, RankedLists]:
        """The rankings that do not depend on the settings."""
        lists = {}
        if self._section.run is not None:
            lists["run"] = self._read_run()
        if self._embeddings is not None:
            lists["dense"] = search_dense(*self._embeddings, self._search_depth, self._section.index)
        return {name: ranking.without(self._excluded, self.depth) for name, ranking in lists.items()}

    def _read_run(self) -> RankedLists:
        assert self._section.run is not None
        query_rows, document_rows = (
            {identity: row for row, identity in enumerate(ids)}
            for ids in (self._collection.query_ids, self._collection.document_ids)
        )
        return read_run(self._section.run, query_rows, document_rows, self.queries, self._search_depth)

    def _analyzer(self, settings: Settings) -> Analyzer:
        return Analyzer(self.analyzer.language, settings.drop_stop_words, settings.stem)

    def _texts(self, indices: Indices) -> list[str]:
        return self._collection.query_texts(np.asarray(self.queries)[indices].tolist())


class Pool:
    """Document rows (Q, m) of some queries, padded with NOTHING, scored by every engine.

    `fixed` are the z-scores (Q, m) float32 of the engines that do not depend on the settings; `bm25` maps k1 and b to
    scores (Q, m) float32.
    """

    def __init__(
        self, documents: np.ndarray, fixed: dict[str, np.ndarray], bm25: Callable[[float, float], np.ndarray] | None
    ) -> None:
        self.documents = documents
        self._fixed = fixed
        self._bm25 = bm25
        self._bm25_z_scores = lru_cache(maxsize=1)(self._score_bm25)  # many weights share the same k1 and b

    def fused(self, settings: Settings) -> np.ndarray:
        """Return the fused scores (Q, m): the weighted sum of z-scores, or the sum of reciprocal ranks."""
        if settings.weights is None:
            return self._reciprocal(settings)
        fused = np.zeros(self.documents.shape, dtype=np.float32)
        for name, weight in settings.weights.items():
            scores = self._bm25_z_scores(settings.k1, settings.b) if name == "bm25" else self._fixed[name]
            fused += np.float32(weight) * scores
        return fused

    def _score_bm25(self, k1: float, b: float) -> np.ndarray:
        assert self._bm25 is not None
        return z_scores(self._bm25(k1, b), self.documents)

    def _reciprocal(self, settings: Settings) -> np.ndarray:
        fused = np.zeros(self.documents.shape)
        for own in self._fixed.values():
            fused += reciprocal_ranks(own, self.documents)
        if self._bm25 is not None:
            scores = self._bm25(settings.k1, settings.b)
            fused += reciprocal_ranks(scores, np.where(scores > 0, self.documents, NOTHING))
        return fused


def count_words(collection: Collection, analyzer: Analyzer) -> Bm25:
    """Return the counts of the corpus under an analyzer."""
    return Bm25(_passages(collection), analyzer)


def language_of(section: Retriever, collection: Collection) -> str:
    """Return the language of BM25's analyzer; with `language: auto` it is detected in the first documents."""
    return (
        section.language
        if section.language != "auto"
        else detect_language(collection.documents[:LANGUAGE_SAMPLE]["passage"])
    )


def _passages(collection: Collection) -> Iterator[str]:
    for start in range(0, len(collection.documents), SHARD):
        yield from collection.documents[start : start + SHARD]["passage"]
