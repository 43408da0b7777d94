"""The first stage: candidates for every judged query, found once and used by mining, dev and test alike.

Dense (bi-encoder, FAISS exact search), BM25, both fused by reciprocal rank, or the user's own TREC run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trainer.console import progress
from trainer.data import SPLITS, Faults
from trainer.errors import RecipeError, did_you_mean
from trainer.recipe import Retriever

if TYPE_CHECKING:
    from trainer.data import Collection

NOTHING = -1  # fills a row of candidates where fewer were found than asked
RRF_K = 60  # Cormack, Clarke and Büttcher, SIGIR 2009
FUSED_DEPTH = 100  # each list goes at least this deep into the fusion
ENCODE_BLOCK = 4096  # documents embedded between two writes
SEARCH_BLOCK = 1024  # queries searched at once


@dataclass(frozen=True)
class Candidates:
    """What the first stage returned for Q queries, best first.

    `similarities` is on a scale on which candidates and positives compare (cosine where there is a bi-encoder, else
    the engine's own score); `positive_similarity` is that of the query's most similar positive, NaN where unknown.
    """

    queries: np.ndarray  # (Q,) int32, query rows
    documents: np.ndarray  # (Q, depth) int32, document rows; NOTHING at the end of short lists
    scores: np.ndarray  # (Q, depth) float32, by which the list is ordered
    similarities: np.ndarray  # (Q, depth) float32
    positive_similarity: np.ndarray  # (Q,) float32

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

    def top(self, depth: int) -> Candidates:
        """The same queries with at most `depth` candidates each."""
        cut = {name: getattr(self, name)[:, :depth] for name in ("documents", "scores", "similarities")}
        return Candidates(self.queries, **cut, positive_similarity=self.positive_similarity)


@dataclass(frozen=True)
class Ranking:
    """One engine's answer: (Q, k) document rows, best first, and their scores."""

    documents: np.ndarray
    scores: np.ndarray


def embed(model_folder: Path, texts: Sequence[str], path: Path, max_length: int, batch_size: int = 32) -> np.ndarray:
    """Unit-length float32 embeddings (texts x dimensions), written block by block to `path` and mapped from there."""
    from sentence_transformers import SentenceTransformer

    if not path.is_file():
        model = SentenceTransformer(str(model_folder), model_kwargs={"use_safetensors": True})
        model.max_seq_length = min(max_length, model.max_seq_length or max_length)
        shape = (len(texts), int(model.get_embedding_dimension() or 0))
        partial = path.with_name(f".{path.name}")
        array = np.lib.format.open_memmap(partial, mode="w+", dtype=np.float32, shape=shape)
        with progress("retrieve", total=len(texts)) as advance:
            for start in range(0, len(texts), ENCODE_BLOCK):
                block = list(texts[start : start + ENCODE_BLOCK])
                array[start : start + len(block)] = model.encode(
                    block, batch_size=batch_size, normalize_embeddings=True, show_progress_bar=False
                )
                advance(len(block), "embedded")
        array.flush()
        del array
        partial.replace(path)
    return np.load(path, mmap_mode="r")


def search_dense(queries: np.ndarray, documents: np.ndarray, depth: int) -> Ranking:
    """Exact inner-product search with FAISS; equal scores in order of rows."""
    import faiss

    index = faiss.IndexFlatIP(documents.shape[1])
    for start in range(0, len(documents), ENCODE_BLOCK):
        index.add(np.ascontiguousarray(documents[start : start + ENCODE_BLOCK]))
    deeper = min(depth + 1, len(documents))  # one more shows whether equal scores stand on both sides of the cut
    blocks = [
        index.search(np.ascontiguousarray(queries[start : start + SEARCH_BLOCK]), deeper)
        for start in range(0, len(queries), SEARCH_BLOCK)
    ]
    scores, rows = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    if deeper > depth:
        for place in np.flatnonzero(scores[:, depth - 1] == scores[:, depth]):
            rows[place, :depth], scores[place, :depth] = _top(documents @ queries[place], depth)
    return _ordered(rows[:, :depth], scores[:, :depth])


def search_bm25(queries: Sequence[str], documents: Sequence[str], depth: int, language: str) -> Ranking:
    """BM25 (bm25s, Lucene's variant, k1 = 1.2, b = 0.75) over stemmed words without stop words."""
    import bm25s

    stemmer, stopwords = _analyzer(language)

    def tokens(texts: Sequence[str], **form: Any) -> Any:
        return bm25s.tokenize(list(texts), stopwords=stopwords, stemmer=stemmer, show_progress=False, **form)

    index = bm25s.BM25(method="lucene", k1=1.2, b=0.75)
    index.index(tokens(documents), show_progress=False)
    nothing = np.zeros(len(documents), dtype=np.float32)
    words = tokens(queries, return_ids=False)
    found = [_top(index.get_scores(query) if query else nothing, min(depth, len(documents))) for query in words]
    rows, scores = (np.stack(parts) for parts in zip(*found, strict=True))
    return _ordered(np.where(scores > 0, rows, NOTHING), scores)  # 0: no word in common, so not found at all


def _analyzer(language: str) -> tuple[Any, list[str]]:
    """Stemmer and stop words by Snowball's name of the language."""
    import Stemmer
    from bm25s.stopwords import STOPWORDS_EN
    from bm25s.tokenization import _infer_stopwords

    if language == "none":
        return None, []
    if language not in Stemmer.algorithms():
        known = did_you_mean(language, [*Stemmer.algorithms(), "none"])
        raise RecipeError(f"retriever.language: no stemmer for {language!r}{known}")
    if language in ("english", "porter"):
        return Stemmer.Stemmer(language), list(STOPWORDS_EN)
    try:
        return Stemmer.Stemmer(language), list(_infer_stopwords(language))
    except ValueError:  # a stemmer, but no list of stop words: BM25 weighs them down by itself
        return Stemmer.Stemmer(language), []


def fuse(rankings: Sequence[Ranking], depth: int) -> Ranking:
    """Reciprocal rank fusion: a document's score is the sum of 1 / (60 + rank) over the lists that hold it."""
    queries = len(rankings[0].documents)
    documents = np.full((queries, depth), NOTHING, dtype=np.int32)
    scores = np.zeros((queries, depth), dtype=np.float32)
    for query in range(queries):
        fused: dict[int, float] = {}
        for ranking in rankings:
            for rank, document in enumerate(ranking.documents[query].tolist(), start=1):
                if document != NOTHING:
                    fused[document] = fused.get(document, 0.0) + 1 / (RRF_K + rank)
        best = sorted(fused, key=lambda document: (-fused[document], document))[:depth]
        documents[query, : len(best)] = best
        scores[query, : len(best)] = [fused[document] for document in best]
    return Ranking(documents, scores)


def read_run(
    path: Path, queries: Mapping[str, int], documents: Mapping[str, int], wanted: Sequence[int], depth: int
) -> Ranking:
    """The user's TREC run (`query Q0 document rank score tag`) for the `wanted` query rows; raises DataError."""
    faults = Faults()
    lists: dict[int, list[tuple[float, int, int]]] = {row: [] for row in wanted}
    seen: dict[tuple[str, str], int] = {}
    for number, line in enumerate(_lines(path), start=1):
        parts = line.split()
        if len(parts) != 6:
            faults.add(
                "broken run lines",
                f"{path}:{number}",
                f"expected `query Q0 document rank score tag`, got {line[:60]!r}",
            )
            continue
        query, _, document, _, score, _ = parts
        if document not in documents:
            faults.add(
                "missing documents", f"{path}:{number}", f"document {document!r} is not in the corpus; use its ids"
            )
        elif query not in queries:
            faults.add(
                "missing queries", f"{path}:{number}", f"query {query!r} is not among the queries; use their ids"
            )
        elif seen.setdefault((query, document), number) != number:
            message = f"document {document!r} is listed for query {query!r} on line {seen[query, document]} already"
            faults.add("documents listed twice", f"{path}:{number}", f"{message}; keep one of them")
        elif not _finite(score):
            faults.add("broken scores", f"{path}:{number}", f"the score is a number, got {score!r}")
        elif queries[query] in lists:
            lists[queries[query]].append((-float(score), number, documents[document]))
    for row in [row for row, found in lists.items() if not found][:1]:
        count = sum(not found for found in lists.values())
        names = {position: identity for identity, position in queries.items()}
        faults.add("queries not in the run", str(path), f"{count} judged queries have no line, e.g. {names[row]!r}")
    faults.stop()
    rows = np.full((len(wanted), depth), NOTHING, dtype=np.int32)
    scores = np.zeros((len(wanted), depth), dtype=np.float32)
    for place, row in enumerate(wanted):
        best = sorted(lists[row])[:depth]
        rows[place, : len(best)] = [document for _, _, document in best]
        scores[place, : len(best)] = [-negated for negated, _, _ in best]
    return Ranking(rows, scores)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"retriever.run: {path} cannot be read: {error}") from None


def _finite(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _top(scores: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and scores of the `depth` highest, unsorted; of equal ones at the cut the first rows stay."""
    least = np.partition(scores, -depth)[-depth]
    above, equal = np.flatnonzero(scores > least), np.flatnonzero(scores == least)
    rows = np.concatenate([above, equal[: depth - len(above)]])
    return rows, scores[rows]


def _ordered(documents: np.ndarray, scores: np.ndarray) -> Ranking:
    """Sort each list by score, equal scores by row, so that no engine's habits decide ties."""
    order = np.lexsort((documents, -scores))
    return Ranking(
        np.take_along_axis(documents, order, axis=1).astype(np.int32),
        np.take_along_axis(scores, order, axis=1).astype(np.float32),
    )


def with_similarities(
    ranking: Ranking,
    queries: Sequence[int],
    qrels: Mapping[int, Mapping[int, int]],
    embeddings: tuple[np.ndarray, np.ndarray] | None,
) -> Candidates:
    """Candidates with the similarities that mining compares.

    `embeddings` are (the listed queries', all documents'); without them the ranking's own scores serve, and a
    positive that was not retrieved has no known similarity.
    """
    similarities = np.where(ranking.documents == NOTHING, np.nan, ranking.scores).astype(np.float32)
    positive = np.full(len(queries), np.nan, dtype=np.float32)
    for place, query in enumerate(queries):
        positives = [document for document, grade in qrels[query].items() if grade > 0]
        if embeddings is not None:
            vectors, documents = embeddings
            found = ranking.documents[place] != NOTHING
            similarities[place, found] = documents[ranking.documents[place, found]] @ vectors[place]
            known = documents[positives] @ vectors[place]
        else:
            known = similarities[place, np.isin(ranking.documents[place], positives)]
        if len(known):
            positive[place] = known.max()
    return Candidates(np.asarray(queries, dtype=np.int32), ranking.documents, ranking.scores, similarities, positive)


def retrieve(
    section: Retriever, collection: Collection, queries: Sequence[int], model_folder: Path | None, folder: Path
) -> tuple[Ranking, tuple[np.ndarray, np.ndarray] | None]:
    """Search the whole collection for the given query rows.

    With a bi-encoder its embeddings (the given queries', all documents') are kept in `folder` and returned beside.
    """
    embeddings, rankings = None, []
    deep = section.depth if section.kind != "hybrid" else max(section.depth, FUSED_DEPTH)
    texts = collection.queries.select(queries)["text"][:]
    passages = collection.documents["passage"]
    if model_folder is not None:
        documents = embed(model_folder, passages, folder / "documents.npy", section.max_length)
        embeddings = (embed(model_folder, texts, folder / "queries.npy", section.max_length), documents)
        rankings.append(search_dense(*embeddings, deep))
    if section.kind in ("bm25", "hybrid"):
        rankings.append(search_bm25(texts, passages[:], deep, section.language))
    if section.run is not None:
        query_rows, document_rows = (
            {identity: row for row, identity in enumerate(ids)}
            for ids in (collection.query_ids, collection.document_ids)
        )
        rankings.append(read_run(section.run, query_rows, document_rows, queries, section.depth))
    return (fuse(rankings, section.depth) if len(rankings) > 1 else rankings[0]), embeddings


def retrieve_splits(
    section: Retriever, collection: Collection, model_folder: Path | None, folder: Path
) -> dict[str, Candidates]:
    """Candidates of every split's answerable queries, found in one go and kept as `SPLIT.npz`."""
    rows = {split: collection.answerable(split) for split in SPLITS}
    everyone = [query for split in SPLITS for query in rows[split]]
    ranking, embeddings = retrieve(section, collection, everyone, model_folder, folder)
    candidates, start = {}, 0
    for split, queries in rows.items():
        part = slice(start, start := start + len(queries))
        vectors = (embeddings[0][part], embeddings[1]) if embeddings else None
        part_ranking = Ranking(ranking.documents[part], ranking.scores[part])
        candidates[split] = with_similarities(part_ranking, queries, collection.qrels[split], vectors)
        candidates[split].save(folder / f"{split}.npz")
    return candidates
