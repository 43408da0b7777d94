"""Search with a finished first stage: new queries, one at a time, over a corpus that stays open.

The engines, their settings and their fusion are those of the run, so a query of the run gets the same candidates again.
The document vectors are memory-mapped; BM25's counts are in memory.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np

from trainer.data import Collection
from trainer.errors import RunError
from trainer.recipe import Retriever
from trainer.retriever.candidates import NOTHING
from trainer.retriever.embeddings import BiEncoder, Embeddings, VectorsInMemory
from trainer.retriever.engines import Engines, Settings, count_words, language_of
from trainer.retriever.retrieve import bi_encoder_of, shards
from trainer.runtime.launch import start_accelerator
from trainer.runtime.precision import Precision, best_device

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


class Searcher:
    """The first stage of a run over its collection; `search` is not safe in several threads at once."""

    def __init__(
        self,
        section: Retriever,
        collection: Collection,
        settings: Settings,
        bi_encoder: BiEncoder | None = None,
        vectors: Embeddings | None = None,
    ) -> None:
        # Exact search of a single query is fast on any corpus, and an IVF index would be built again for each.
        fixed = {"language": language_of(section, collection), "index": "flat"}
        self._section = section.model_copy(update=fixed)
        self._collection = collection
        self._settings = settings
        self._bi_encoder = bi_encoder
        self._vectors = vectors
        self._model: SentenceTransformer | None = None
        self._bm25 = lru_cache(maxsize=1)(partial(count_words, collection))
        self.depth = section.depth

    @classmethod
    def open(
        cls,
        section: Retriever,
        collection: Collection,
        settings: Settings,
        cache: Path,
        trust_remote_code: bool = False,
    ) -> Searcher:
        """Return the first stage, ready to search; documents without vectors in `cache` are encoded first.

        Raises RunError if the first stage is the user's own engine, and ModelError for the bi-encoder's files.
        """
        if section.run is not None:
            raise RunError(
                "search: the first stage of this run is the TREC run of your own engine, which has no results for new "
                "queries; send its results to /rerank, or to Reranker.rank"
            )
        if section.bi_encoder is None:
            searcher = cls(section, collection, settings)
        else:
            bi_encoder, vectors = _vectors(section, collection, cache, trust_remote_code)
            searcher = cls(section, collection, settings, bi_encoder, vectors)
            searcher._model = bi_encoder.load(best_device())
        searcher.search("warm up")
        return searcher

    def search(self, query: str) -> tuple[np.ndarray, np.ndarray]:
        """Return the document rows (n,) int32 and their scores (n,) float32, best first; n is at most the depth."""
        engines = Engines(self._section, self._with(query), [0], self._encoded(query), self._bm25)
        ranking = engines.fused(engines.lists(self._settings), self._settings).part(slice(None), self.depth)
        found = ranking.documents[0] != NOTHING
        return ranking.documents[0][found], ranking.scores[0][found]

    def _with(self, query: str) -> Collection:
        """Return the collection with this query only."""
        from datasets import Dataset

        queries = Dataset.from_dict({"id": [""], "text": [query]})
        return replace(self._collection, queries=queries, self_documents={})

    def _encoded(self, query: str) -> tuple[Embeddings, Embeddings] | None:
        """Return the vectors of the query and of all documents; None without a bi-encoder."""
        if self._bi_encoder is None or self._model is None or self._vectors is None:
            return None
        return VectorsInMemory(self._bi_encoder.encode(self._model, [query], "query", 1)), self._vectors


def _vectors(
    section: Retriever, collection: Collection, cache: Path, trust_remote_code: bool
) -> tuple[BiEncoder, Embeddings]:
    """Return the bi-encoder in the precision in which it has encoded the documents, and their vectors."""
    bi_encoder = replace(bi_encoder_of(section), trust_remote_code=trust_remote_code)
    exact = shards(bi_encoder, collection, cache, [])[1]
    for precision in get_args(Precision):
        documents = exact.in_precision(precision)
        if documents.is_complete:
            return documents.bi_encoder, documents.open()
    exact.encode(start_accelerator(exact.bi_encoder.precision))
    return exact.bi_encoder, exact.open()
