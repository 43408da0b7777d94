"""Tokenising and scoring the (query, document) rows of a collection with the cross-encoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from trainer.data import Collection, covering_length
from trainer.errors import RunError
from trainer.model.batching import PairEncoder, Role, Tokens
from trainer.model.reranker import Reranker
from trainer.model.windows import Pair
from trainer.retriever import Candidates
from trainer.runtime.console import Note
from trainer.runtime.numbers import evenly

Row = tuple[int, int]  # of a query and of a document

COUNTED_LISTS, COUNTED_PAIRS = 200, 2000  # queries and pairs sampled to choose a length
PAIRS_PER_CHUNK = 32768  # pairs tokenised together, while the previous chunk is scored


class TokenizedCollection:
    """A collection whose queries and documents are tokenised when first needed, each once."""

    def __init__(self, collection: Collection, pairs: PairEncoder) -> None:
        self.collection = collection
        self._pairs = pairs
        self._queries: dict[int, Tokens] = {}
        self._documents: dict[int, Tokens] = {}

    def pairs(self, rows: Sequence[Row]) -> list[Pair]:
        """Return the token pairs of (query row, document row) pairs."""
        rows = [(query, self.collection.read_with(query, document)) for query, document in rows]
        self._add(self._queries, {query for query, _ in rows}, self.collection.query_texts, "query")
        self._add(self._documents, {document for _, document in rows}, self.collection.passages, "document")
        return [(self._queries[query], self._documents[document]) for query, document in rows]

    def documents(self, limit: int) -> list[Tokens]:
        """Return the tokens of the first `limit` documents."""
        rows = range(min(limit, len(self.collection.documents)))
        self._add(self._documents, set(rows), self.collection.passages, "document")
        return [self._documents[row] for row in rows]

    def _add(
        self, known: dict[int, Tokens], rows: set[int], texts: Callable[[Sequence[int]], list[str]], role: Role
    ) -> None:
        """Tokenise the rows that are missing in `known` and add them."""
        if new := sorted(rows - known.keys()):
            known |= dict(zip(new, self._pairs.tokenize(texts(new), role), strict=True))


class ChosenWindows:
    """The pairs of training: of a document that is read in windows, the one window that was chosen before.

    `chosen` is {(query row, document row): index of the window}; documents that are not in it have a single window.
    """

    def __init__(self, reranker: Reranker, tokenized: TokenizedCollection, chosen: Mapping[Row, int]) -> None:
        self._reranker = reranker
        self._tokenized = tokenized
        self._chosen = chosen

    def pairs(self, rows: Sequence[Row]) -> list[Pair]:
        """Return the token pairs of (query row, document row) pairs."""
        windowed = self._reranker.cut(self._tokenized.pairs(rows))
        indices = windowed.starts + [self._chosen.get(row, 0) for row in rows]
        return [windowed.pairs[index] for index in indices.tolist()]


def fit_length(reranker: Reranker, collection: Collection, candidates: Candidates) -> str:
    """Set the reranker's `max_length` so that 90 % of the pairs are not truncated, and return a message about it.

    Of documents that are read in windows, each window counts as a pair.
    The length is bounded by what the model can read, and chosen on at most 2,000 pairs of evenly spaced queries. The
    message is empty if there are no pairs.
    """
    lists = candidates.select(evenly(len(candidates.queries), COUNTED_LISTS)).top(COUNTED_PAIRS // COUNTED_LISTS)
    rows = [(query, row) for index, query in enumerate(lists.queries.tolist()) for row in lists.found(index)]
    if not rows:
        return ""
    pairs = reranker.cut(TokenizedCollection(collection, reranker.pairs).pairs(rows)).pairs
    lengths = np.array([len(query) + len(document) + reranker.pairs.num_special for query, document in pairs])
    length = covering_length(lengths.tolist(), reranker.max_length)
    reranker.read_at_most(length)
    share = np.mean(lengths <= length)
    speedup = np.minimum(lengths, length).sum() / np.minimum(lengths, length // 2).sum()
    return (
        f"reranker.max_length: {length} tokens, so that {share:.0%} of the pairs are read in full; "
        f"{length // 2} would be {speedup:.1f} times as fast"
    )


def score_rows(
    reranker: Reranker,
    tokenized: TokenizedCollection,
    rows: Sequence[Row],
    accelerator: Accelerator | None,
    note: Note = None,
) -> np.ndarray:
    """Return scores (pairs,) float32 of (query row, document row) pairs.

    All processes of the accelerator share the work; without one this process scores every pair.
    """

    def score(ours: Sequence[Row]) -> np.ndarray:
        starts = range(0, len(ours), PAIRS_PER_CHUNK)
        chunks = (tokenized.pairs(ours[start : start + PAIRS_PER_CHUNK]) for start in starts)
        return reranker.score_chunks(chunks, len(ours), note)

    return _shared(rows, accelerator, score)


def best_window_of(
    reranker: Reranker,
    tokenized: TokenizedCollection,
    rows: Sequence[Row],
    accelerator: Accelerator | None,
    note: str | None = None,
) -> dict[Row, int]:
    """Return the index of the best window of each (query row, document row) pair with several windows.

    All processes of the accelerator share the work, as in `score_rows`.
    """
    counts = reranker.cut(tokenized.pairs(rows)).counts
    several = [row for row, count in zip(rows, counts.tolist(), strict=True) if count > 1]

    def choose(ours: Sequence[Row]) -> np.ndarray:
        windowed = reranker.cut(tokenized.pairs(ours))
        return windowed.best_index(reranker.score_windows(windowed.pairs, note)) - windowed.starts

    return dict(zip(several, _shared(several, accelerator, choose).tolist(), strict=True))


def _shared(
    rows: Sequence[Row], accelerator: Accelerator | None, compute: Callable[[Sequence[Row]], np.ndarray]
) -> np.ndarray:
    """Return the numbers (rows,) that `compute` gives, of which every process computes a part."""
    place, processes = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    part = compute(rows[place::processes])
    parts = gather_object([part]) if processes > 1 else [part]
    numbers = np.empty(len(rows), dtype=part.dtype)
    for index, one in enumerate(parts):
        numbers[index::processes] = one
    return numbers


def rerank(
    reranker: Reranker,
    tokenized: TokenizedCollection,
    candidates: Candidates,
    accelerator: Accelerator | None,
    note: str | None = None,
) -> np.ndarray:
    """Return the model's scores (queries, depth) float32 of all candidates, -inf at the padding.

    Raises RunError if a score is NaN: sorting would keep the first stage's order, and a broken model would seem as
    good as the first stage.
    """
    scores = candidates.scored(lambda rows: score_rows(reranker, tokenized, rows, accelerator, note))
    if np.isnan(scores).any():
        raise RunError(
            f"{note or 'score'}: {np.isnan(scores).sum()} of {scores.size} scores of the model are not numbers, so its "
            "weights or its precision are at fault; lower the learning rate, or set train.precision=fp32"
        )
    return scores


def inverse_document_frequency(tokenized: Sequence[Tokens], vocabulary: int) -> Tensor:
    """Return the idf of each token (vocabulary,) float32: log((N + 1) / (df + 1/2)), at least 0.05.

    Inverse document frequency: Spärck Jones, Journal of Documentation 1972; here smoothed and bounded below.
    """
    frequency = np.zeros(vocabulary)
    for tokens in tokenized:
        frequency[np.unique(tokens)] += 1
    return torch.tensor(np.maximum(np.log((len(tokenized) + 1) / (frequency + 0.5)), 0.05), dtype=torch.float32)
