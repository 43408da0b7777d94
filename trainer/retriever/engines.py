"""The engines of the first stage, asked once for all queries and ranked together under any settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from trainer.data import Collection
from trainer.data.languages import SAMPLE, detect_language
from trainer.recipe import Retriever
from trainer.retriever.bm25 import K1, Analyzer, B, Bm25
from trainer.retriever.candidates import NOTHING, Ranking, at_ranks, cosines, ranks_in
from trainer.retriever.dense import search_dense
from trainer.retriever.embeddings import SHARD, Embeddings
from trainer.retriever.fusion import fuse, ordered, reciprocal_ranks, standardised, union
from trainer.retriever.trec_run import read_run

MINING_DEPTH = 200  # train queries keep at least so many candidates, and every list goes so deep into the fusion
Places = slice | np.ndarray
EVERY = slice(None)
QUERIES_AT_ONCE = 4096  # whose pools of documents are in memory together: some 100 MB


@dataclass(frozen=True)
class Settings:
    """How the first stage ranks: BM25's parameters, and the engines' weights."""

    k1: float = K1
    b: float = B
    drop_stop_words: bool = True
    stem: bool = True
    weights: Mapping[str, float] | None = None  # of the engines' standardised scores; None: reciprocal rank fusion


class Engines:
    """The engines that a recipe asks, over a collection, for query rows; `embeddings` are (queries', documents').

    No engine lists the documents that are the query itself; it lists others in their place.
    """

    def __init__(
        self,
        section: Retriever,
        collection: Collection,
        queries: Sequence[int],
        embeddings: tuple[Embeddings, Embeddings] | None,
    ) -> None:
        self._section = section
        self._collection = collection
        self._embeddings = embeddings
        self.queries = queries
        self.depth = max(section.depth, MINING_DEPTH)
        self._excluded = [collection.self_documents.get(query, ()) for query in queries]
        self._search_depth = self.depth + max(map(len, self._excluded), default=0)
        self._bm25 = lru_cache(maxsize=1)(self._read)  # one analyzer's counts are in memory at a time

    @property
    def has_bm25(self) -> bool:
        """Whether BM25 is among the engines."""
        return self._section.has_bm25

    @property
    def names(self) -> list[str]:
        """Names of the engines, in the order of their lists."""
        return [*self._fixed, *(["bm25"] if self.has_bm25 else [])]

    @cached_property
    def analyzer(self) -> Analyzer:
        """BM25's default for the language of the collection."""
        return Analyzer(language_of(self._section, self._collection))

    def lists(self, settings: Settings, places: Places = EVERY) -> dict[str, Ranking]:
        """Return each engine's own ranking for the queries at some places."""
        lists = {name: ranking.part(places) for name, ranking in self._fixed.items()}
        if self.has_bm25:
            bm25 = self._bm25(self._analyzer(settings))
            found = bm25.search(self._texts(places), self._search_depth, settings.k1, settings.b)
            excluded = [self._excluded[place] for place in np.arange(len(self.queries))[places]]
            lists["bm25"] = found.without(excluded, self.depth)
        return lists

    @property
    def default_settings(self) -> Settings:
        """What tuning is compared with: the user's own run alone where there is one, else all engines fused by rank."""
        return Settings(weights={"run": 1.0} if self._section.run is not None else None)

    @property
    def untuned_settings(self) -> Settings:
        """What ranks without tuning: the same, but a run is fused with the other engines by rank where asked."""
        return Settings() if self._section.fuse_run else self.default_settings

    def fused(self, lists: Mapping[str, Ranking], settings: Settings) -> Ranking:
        """Return the lists of all queries as one ranking: a single one as it is, several fused."""
        only = list(lists) if len(lists) == 1 else list(settings.weights or {})
        if len(only) == 1:
            return lists[only[0]]
        if settings.weights is None:
            return fuse(list(lists.values()), self.depth)
        parts = []
        for start in range(0, len(self.queries), QUERIES_AT_ONCE):
            places = np.arange(start, min(start + QUERIES_AT_ONCE, len(self.queries)))
            pool = self.pool({name: ranking.part(places) for name, ranking in lists.items()}, settings, places)
            parts.append(ordered(pool.documents, pool.fused(settings), self.depth))
        return Ranking(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("documents", "scores")))

    def pool(self, lists: Mapping[str, Ranking], settings: Settings, places: np.ndarray) -> Pool:
        """Return what the lists of the queries at some places hold together, to be scored by every engine.

        The bi-encoder and BM25 score all of it. A run cannot: what it does not list has the lowest score that it gave.
        """
        documents = union(list(lists.values()))
        scores = {}
        for name in (name for name in lists if name != "bm25"):
            own = lists[name]
            known = at_ranks(own.scores, ranks_in(own.documents, documents))
            if name == "dense":
                known = self._with_cosines(known, documents, places)
            else:
                lowest = np.where(own.documents == NOTHING, np.inf, own.scores).min(axis=1, keepdims=True)
                known = np.where(np.isnan(known), np.where(np.isinf(lowest), 0, lowest), known)
            scores[name] = standardised(known, documents)
        if not self.has_bm25:
            return Pool(documents, scores, None)
        return Pool(documents, scores, self._bm25(self._analyzer(settings)).scorer(self._texts(places), documents))

    def _with_cosines(self, known: np.ndarray, documents: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Return the bi-encoder's scores (Q, m) with those that are not known computed."""
        assert self._embeddings is not None
        vectors = self._embeddings[0].rows(places)
        missing = np.argwhere(np.isnan(known) & (documents != NOTHING))
        known[tuple(missing.T)] = cosines(vectors, self._embeddings[1], missing[:, 0], documents[tuple(missing.T)])
        return np.nan_to_num(known)

    @cached_property
    def _fixed(self) -> dict[str, Ranking]:
        """The rankings that no setting changes."""
        lists = {}
        if self._section.run is not None:
            lists["run"] = self._read_run()
        if self._embeddings is not None:
            lists["dense"] = search_dense(*self._embeddings, self._search_depth, self._section.index)
        return {name: ranking.without(self._excluded, self.depth) for name, ranking in lists.items()}

    def _read_run(self) -> Ranking:
        assert self._section.run is not None
        query_rows, document_rows = (
            {identity: row for row, identity in enumerate(ids)}
            for ids in (self._collection.query_ids, self._collection.document_ids)
        )
        return read_run(self._section.run, query_rows, document_rows, self.queries, self._search_depth)

    def _read(self, analyzer: Analyzer) -> Bm25:
        return Bm25(_passages(self._collection), analyzer)

    def _analyzer(self, settings: Settings) -> Analyzer:
        return Analyzer(self.analyzer.language, settings.drop_stop_words, settings.stem)

    def _texts(self, places: Places) -> list[str]:
        return self._collection.query_texts(np.asarray(self.queries)[places].tolist())


class Pool:
    """Documents (Q, m) of some queries, NOTHING in the gaps, scored by every engine.

    `fixed` are the standardised scores (Q, m) of the engines that no setting changes; `bm25` scores by k1 and b.
    """

    def __init__(
        self, documents: np.ndarray, fixed: dict[str, np.ndarray], bm25: Callable[[float, float], np.ndarray] | None
    ) -> None:
        self.documents = documents
        self._fixed = fixed
        self._bm25 = bm25
        self._standardised = lru_cache(maxsize=1)(self._by_bm25)  # many weights are tried with the same k1 and b

    def fused(self, settings: Settings) -> np.ndarray:
        """Return the fused scores (Q, m): the weighted sum of standardised ones, or the sum of reciprocal ranks."""
        if settings.weights is None:
            return self._reciprocal(settings)
        fused = np.zeros(self.documents.shape, dtype=np.float32)
        for name, weight in settings.weights.items():
            scores = self._standardised(settings.k1, settings.b) if name == "bm25" else self._fixed[name]
            fused += np.float32(weight) * scores
        return fused

    def _by_bm25(self, k1: float, b: float) -> np.ndarray:
        assert self._bm25 is not None
        return standardised(self._bm25(k1, b), self.documents)

    def _reciprocal(self, settings: Settings) -> np.ndarray:
        fused = np.zeros(self.documents.shape)
        for own in self._fixed.values():
            fused += reciprocal_ranks(own, self.documents)
        if self._bm25 is not None:
            scores = self._bm25(settings.k1, settings.b)
            fused += reciprocal_ranks(scores, np.where(scores > 0, self.documents, NOTHING))
        return fused


def language_of(section: Retriever, collection: Collection) -> str:
    """Return the language that BM25 takes; where the recipe says auto, the first documents tell it."""
    return section.language if section.language != "auto" else detect_language(collection.documents[:SAMPLE]["passage"])


def _passages(collection: Collection) -> Iterator[str]:
    for start in range(0, len(collection.documents), SHARD):
        yield from collection.documents[start : start + SHARD]["passage"]
