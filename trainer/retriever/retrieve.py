"""The first stage as a whole: every engine asked once, for all splits together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from trainer.data import SPLITS, Collection
from trainer.languages import SAMPLE, detect_language
from trainer.recipe import Retriever
from trainer.retriever.bm25 import search_bm25
from trainer.retriever.candidates import Candidates, Ranking, as_candidates
from trainer.retriever.dense import search_dense
from trainer.retriever.embeddings import SHARD, BiEncoder, Embeddings, Shards
from trainer.retriever.fusion import fuse
from trainer.retriever.own_run import read_run

MINING_DEPTH = 200  # train queries keep at least so many candidates, and every list goes so deep into the fusion


def judged_queries(collection: Collection) -> list[int]:
    """Rows of all queries that are searched for: those with a positive, split by split."""
    return [query for split in SPLITS for query in collection.answerable(split)]


def shards(
    bi_encoder: BiEncoder, collection: Collection, cache: Path, queries: Sequence[int] | None = None
) -> tuple[Shards, Shards]:
    """The embeddings that the first stage needs, of query rows (None: the judged) and of all documents, made or not."""
    queries = judged_queries(collection) if queries is None else queries

    def query_texts(start: int, end: int) -> list[str]:
        return collection.query_texts(queries[start:end])

    def passages(start: int, end: int) -> list[str]:
        return collection.documents[start:end]["passage"]

    return (
        Shards(bi_encoder, "query", query_texts, len(queries), cache),
        Shards(bi_encoder, "document", passages, len(collection.documents), cache),
    )


def language_of(section: Retriever, collection: Collection) -> str:
    """The language that BM25 takes, where the recipe says auto told from the first documents."""
    return section.language if section.language != "auto" else detect_language(collection.documents[:SAMPLE]["passage"])


def retrieve(
    section: Retriever, collection: Collection, queries: Sequence[int], embeddings: tuple[Embeddings, Embeddings] | None
) -> dict[str, Ranking]:
    """Each engine's ranking of the collection for the given query rows; `embeddings` are (queries', documents').

    Without the documents that are the query itself, in whose place each engine lists others.
    """
    excluded, deep = [collection.self_documents.get(query, ()) for query in queries], max(section.depth, MINING_DEPTH)
    lists = _search(section, collection, queries, embeddings, deep + max(map(len, excluded), default=0))
    return {engine: ranking.without(excluded, deep) for engine, ranking in lists.items()}


def _search(
    section: Retriever,
    collection: Collection,
    queries: Sequence[int],
    embeddings: tuple[Embeddings, Embeddings] | None,
    deep: int,
) -> dict[str, Ranking]:
    """Ask the engines that the recipe names for the best `deep` documents of each query row."""
    if section.run is not None:
        query_rows, document_rows = (
            {identity: row for row, identity in enumerate(ids)}
            for ids in (collection.query_ids, collection.document_ids)
        )
        return {"run": read_run(section.run, query_rows, document_rows, queries, deep)}
    lists = {}
    if embeddings is not None:
        lists["dense"] = search_dense(*embeddings, deep, section.index)
    if section.kind != "dense":
        passages = (text for start in range(0, len(collection.documents), SHARD)
                    for text in collection.documents[start : start + SHARD]["passage"])  # fmt: skip
        texts = collection.query_texts(queries)
        lists["bm25"] = search_bm25(texts, passages, deep, language_of(section, collection))
    return lists


def retrieve_splits(
    section: Retriever, collection: Collection, embeddings: tuple[Embeddings, Embeddings] | None, folder: Path
) -> dict[str, Candidates]:
    """Candidates of every split's answerable queries, found in one go and kept as `SPLIT.npz`.

    Dev and test have `section.depth` of them, train as many more as mining may want.
    """
    lists = retrieve(section, collection, judged_queries(collection), embeddings)
    ranking = _one_ranking(section, lists)
    candidates, start = {}, 0
    for split in SPLITS:
        queries = collection.answerable(split)
        part = slice(start, start := start + len(queries))
        depth = None if split == "train" else section.depth
        vectors = (embeddings[0].rows(np.r_[part]), embeddings[1]) if embeddings else None
        own = {engine: found.part(part) for engine, found in lists.items()}
        relevant = collection.relevant(split)
        candidates[split] = as_candidates(ranking.part(part, depth), own, queries, relevant, vectors)
        candidates[split].save(folder / f"{split}.npz")
    return candidates


def retrieve_unjudged(
    section: Retriever, collection: Collection, queries: Sequence[int], embeddings: tuple[Embeddings, Embeddings] | None
) -> Candidates:
    """Candidates of query rows for which nothing is judged, as deep as those of train queries."""
    assert section.run is None, "a run holds no other queries than its own"
    lists = retrieve(section, collection, queries, embeddings)
    vectors = (embeddings[0].rows(np.arange(len(queries))), embeddings[1]) if embeddings else None
    return as_candidates(_one_ranking(section, lists), lists, queries, {query: {} for query in queries}, vectors)


def _one_ranking(section: Retriever, lists: Mapping[str, Ranking]) -> Ranking:
    """The engines' rankings fused, or the only one as it is."""
    if len(lists) == 1:
        return next(iter(lists.values()))
    return fuse(list(lists.values()), max(section.depth, MINING_DEPTH))
