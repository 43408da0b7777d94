"""Retrieval for all splits together, so that every engine searches once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from trainer.data import SPLITS, Collection
from trainer.recipe import Retriever
from trainer.retriever.candidates import Candidates, RankedLists, as_candidates
from trainer.retriever.embeddings import BiEncoder, Embeddings, Shards
from trainer.retriever.engines import Engines, Settings
from trainer.retriever.tuning import ENOUGH, Tuning, tune


def judged_queries(collection: Collection) -> list[int]:
    """Return the rows of all queries with a positive, split by split."""
    return [query for split in SPLITS for query in collection.answerable(split)]


def shards(
    bi_encoder: BiEncoder, collection: Collection, cache: Path, queries: Sequence[int] | None = None
) -> tuple[Shards, Shards]:
    """Return the embedding shards of `queries` (rows; None: all with a positive) and of all documents."""
    queries = judged_queries(collection) if queries is None else queries

    def query_texts(start: int, end: int) -> list[str]:
        return collection.query_texts(queries[start:end])

    def passages(start: int, end: int) -> list[str]:
        return collection.documents[start:end]["passage"]

    return (
        Shards(bi_encoder, "query", query_texts, len(queries), cache),
        Shards(bi_encoder, "document", passages, len(collection.documents), cache),
    )


def retrieve_splits(
    section: Retriever, collection: Collection, embeddings: tuple[Embeddings, Embeddings] | None, folder: Path
) -> dict[str, Candidates]:
    """Return the candidates of every split's queries with a positive, and save them as `SPLIT.npz` in `folder`.

    Dev and test get `section.depth` candidates, train at least MINING_DEPTH. The settings are tuned on the train
    queries and saved as tuning.json. Where they change the ranking, the candidates of dev and test under the default
    settings are saved as `default-SPLIT.npz`.
    """
    engines = Engines(section, collection, judged_queries(collection), embeddings)
    default_lists = engines.lists(engines.default_settings)
    default = engines.fused(default_lists, engines.default_settings)
    tuning = _tuning(section, collection, engines, default)
    tuning.save(folder)
    lists = default_lists if tuning.settings == engines.default_settings else engines.lists(tuning.settings)
    ranking = engines.fused(lists, tuning.settings)
    candidates = _cut(section, collection, ranking, lists, embeddings)
    for split, ranked in candidates.items():
        ranked.save(folder / f"{split}.npz")
    if not np.array_equal(ranking.documents, default.documents):
        for split, ranked in _cut(section, collection, default, default_lists, embeddings).items():
            if split != "train":
                ranked.save(folder / f"default-{split}.npz")
    return candidates


def _cut(
    section: Retriever,
    collection: Collection,
    ranking: RankedLists,
    lists: Mapping[str, RankedLists],
    embeddings: tuple[Embeddings, Embeddings] | None,
) -> dict[str, Candidates]:
    """Return the ranking of all queries with a positive as the candidates of each split."""
    candidates, start = {}, 0
    for split in SPLITS:
        queries = collection.answerable(split)
        part = slice(start, start := start + len(queries))
        depth = None if split == "train" else section.depth
        vectors = (embeddings[0].rows(np.r_[part]), embeddings[1]) if embeddings else None
        own = {engine: ranked.part(part) for engine, ranked in lists.items()}
        relevant = collection.relevant(split)
        candidates[split] = as_candidates(ranking.part(part, depth), own, queries, relevant, vectors)
    return candidates


def _tuning(section: Retriever, collection: Collection, engines: Engines, default: RankedLists) -> Tuning:
    """Return the settings tuned on the train queries, or the defaults if tuning is off or the queries are too few."""
    train = len(collection.answerable("train"))
    if section.tune == "off" or not section.has_bm25:
        return Tuning(engines.untuned_settings)
    if train < ENOUGH[section.tune]:
        return Tuning(engines.untuned_settings, note=f"{train} train queries, and {ENOUGH[section.tune]} are needed")
    return tune(engines, default, train, collection.relevant("train"), section.fusion == "rrf")


def retrieve_unjudged(
    section: Retriever,
    collection: Collection,
    queries: Sequence[int],
    embeddings: tuple[Embeddings, Embeddings] | None,
    settings: Settings | None = None,
) -> Candidates:
    """Return the candidates of query rows without judgements, at the depth of the train queries' candidates."""
    assert section.run is None, "a TREC run has no lists for other queries"
    settings = settings or Settings()
    engines = Engines(section, collection, queries, embeddings)
    lists = engines.lists(settings)
    vectors = (embeddings[0].rows(np.arange(len(queries))), embeddings[1]) if embeddings else None
    return as_candidates(engines.fused(lists, settings), lists, queries, {query: {} for query in queries}, vectors)
