"""Retrieval for all splits together, so that every engine searches once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from trainer.data import SPLITS, Collection
from trainer.model_files import references
from trainer.recipe import Retriever
from trainer.retriever.candidates import Candidates, RankedLists, as_candidates
from trainer.retriever.embeddings import BiEncoder, Embeddings, Replaced, Shards
from trainer.retriever.engines import Engines, Settings
from trainer.retriever.trec_run import ranking_of_dict
from trainer.retriever.tuning import ENOUGH, Tuning, tune

if TYPE_CHECKING:
    from accelerate import Accelerator

    from trainer.runtime.precision import Precision


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


def embed(
    section: Retriever,
    collection: Collection,
    cache: Path,
    accelerator: Accelerator,
    queries: Sequence[int] | None = None,
    choose: Callable[[BiEncoder], Precision] | None = None,
    cut: bool = False,
) -> tuple[tuple[Embeddings, Embeddings] | None, str]:
    """Return the vectors of query rows (None: all judged ones) and of all documents, and a message on new ones.

    With `cut` those of the documents are of the texts that made queries find (`Collection.as_made_queries_find_it`).
    Each process encodes its share of what is missing in `cache`, in the precision that `choose` returns (None: fp32).
    The vectors are None if the first stage has no bi-encoder.
    """
    if section.bi_encoder is None:
        return None, ""
    bi_encoder = bi_encoder_of(section)
    parts = shards(bi_encoder, collection, cache, queries)
    if cut:
        texts = list(collection.cut.values())
        parts += (Shards(bi_encoder, "document", lambda start, end: texts[start:end], len(texts), cache),)
    missing = [part.find_missing(accelerator) for part in parts]
    if any(missing) and choose is not None:
        precision = choose(bi_encoder)
        if precision != bi_encoder.precision:
            parts = tuple(part.in_precision(precision) for part in parts)
    for part in parts:
        part.encode(accelerator)
    accelerator.wait_for_everyone()
    vectors, documents, *others = (part.open() for part in parts)
    if others:
        documents = Replaced(documents, list(collection.cut), others[0])
    return (vectors, documents), f"{len(parts[1].missing)} of {len(parts[1].paths)} shards of documents embedded"


def embedded_share(section: Retriever, collection: Collection, cache: Path) -> float:
    """Return the share of the document shards that are in `cache`, in the precision that has most of them."""
    if section.bi_encoder is None:
        return 0.0
    documents = shards(bi_encoder_of(section), collection, cache, queries=[])[1]
    choices = (documents.paths, documents.in_precision("bf16").paths)
    return max(sum(path.is_file() for path in paths) / len(paths) for paths in choices)


def bi_encoder_of(section: Retriever) -> BiEncoder:
    """Return the first stage's bi-encoder in float32."""
    assert section.bi_encoder is not None
    return BiEncoder(
        references.locate(section.bi_encoder),
        section.max_length,
        section.query_prompt,
        section.document_prompt,
        trust_remote_code=section.trust_remote_code,
    )


def candidates_of_dict(run: Mapping[str, Mapping[str, float]], collection: Collection, split: str) -> Candidates:
    """Return the candidates of a split's answerable queries from a run {query id: {document id: score}}.

    All documents of a query are kept, by descending score, ties in the order of the dict. Raises DataError with all
    problems.
    """
    queries = collection.answerable(split)
    ranking = ranking_of_dict(run, collection.query_ids, collection.document_ids, queries)
    excluded = [collection.self_documents.get(query, ()) for query in queries]
    ranking = ranking.without(excluded, ranking.documents.shape[1])
    return as_candidates(ranking, {"run": ranking}, queries, collection.relevant(split), None)


def retrieve_splits(
    section: Retriever,
    collection: Collection,
    embeddings: tuple[Embeddings, Embeddings] | None,
    folder: Path,
    of_made: tuple[Embeddings, Embeddings] | None = None,
) -> dict[str, Candidates]:
    """Return the candidates of every split's queries with a positive, and save them as `SPLIT.npz` in `folder`.

    Made queries search the documents without the queries that were taken from them; `of_made` are the vectors of the
    made queries and of these documents.

    Dev and test get `section.depth` candidates, train at least MINING_DEPTH. The settings are tuned on the train
    queries, or on dev if those are made, and saved as tuning.json. If they change the ranking, the candidates of dev
    and test under the default settings are saved as `default-SPLIT.npz`.
    """
    engines = Engines(section, collection, judged_queries(collection), embeddings)
    default_lists = engines.lists(engines.default_settings)
    default = engines.fused(default_lists, engines.default_settings)
    tuning = _tuning(section, collection, engines, default)
    tuning.save(folder)
    lists = default_lists if tuning.settings == engines.default_settings else engines.lists(tuning.settings)
    ranking = engines.fused(lists, tuning.settings)
    candidates = _cut(section, collection, ranking, lists, embeddings)
    candidates = _with_made(section, collection, candidates, of_made, tuning.settings)
    for split, ranked in candidates.items():
        ranked.save(folder / f"{split}.npz")
    if not np.array_equal(ranking.documents, default.documents):
        untuned = _cut(section, collection, default, default_lists, embeddings)
        untuned = _with_made(section, collection, untuned, of_made, engines.default_settings)
        for split, ranked in untuned.items():
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


def _with_made(
    section: Retriever,
    collection: Collection,
    candidates: dict[str, Candidates],
    embeddings: tuple[Embeddings, Embeddings] | None,
    settings: Settings,
) -> dict[str, Candidates]:
    """Return the candidates of all splits, those of made queries found in documents without these queries."""
    if not collection.cut:
        return candidates
    rows = made_queries(collection)
    found = retrieve_unjudged(section, collection.as_made_queries_find_it(), rows, embeddings, settings, judged=True)
    replaced, start = {}, 0
    for split, ranked in candidates.items():
        real = [index for index, row in enumerate(ranked.queries.tolist()) if row not in collection.made]
        end = start + len(ranked.queries) - len(real)
        made = found.select(np.arange(start, end)).top(ranked.documents.shape[1])
        replaced[split], start = ranked.select(np.array(real, dtype=np.int64)).joined(made), end
    return replaced


def made_queries(collection: Collection) -> list[int]:
    """Return the rows of all made queries, split by split."""
    return [row for row in judged_queries(collection) if row in collection.made]


def _tuning(section: Retriever, collection: Collection, engines: Engines, default: RankedLists) -> Tuning:
    """Return the settings tuned on the queries of a split, or the defaults if tuning is off or they are too few."""
    if section.tune == "off" or not section.has_bm25:
        return Tuning(engines.untuned_settings)
    start, counts = 0, []
    for split in ("train", "dev") if collection.made else ("train",):
        queries = collection.answerable(split)
        asked = sum(query not in collection.made for query in queries)  # the first ones
        if asked >= ENOUGH[section.tune]:
            positions = range(start, start + asked)
            return tune(engines, default, positions, collection.relevant(split), split, section.fusion == "rrf")
        start += len(queries)
        counts.append(f"{asked} {split} queries")
    those = " that are not made from documents" if collection.made else ""
    note = f"{' and '.join(counts)}{those}, and {ENOUGH[section.tune]} are needed"
    return Tuning(engines.untuned_settings, note=note)


def retrieve_unjudged(
    section: Retriever,
    collection: Collection,
    queries: Sequence[int],
    embeddings: tuple[Embeddings, Embeddings] | None,
    settings: Settings | None = None,
    judged: bool = False,
) -> Candidates:
    """Return the candidates of query rows, at the depth of the train queries' candidates.

    Their judgements are only looked at if they are `judged`.
    """
    assert section.run is None, "a TREC run has no lists for other queries"
    settings = settings or Settings()
    engines = Engines(section, collection, queries, embeddings)
    lists = engines.lists(settings)
    vectors = (embeddings[0].rows(np.arange(len(queries))), embeddings[1]) if embeddings else None
    relevant = {query: grades for split in SPLITS for query, grades in collection.relevant(split).items() if judged}
    relevant = {query: relevant.get(query, {}) for query in queries}
    return as_candidates(engines.fused(lists, settings), lists, queries, relevant, vectors)
