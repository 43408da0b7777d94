"""Texts to tensors: tokenised once, joined by the tokenizer's own template, batched by length.

A query stands in many pairs and a document in many more, so each text is tokenised once without special tokens and
pairs are put together from the pieces; the result equals `tokenizer(query, document, truncation=True)` (tested for
BERT, RoBERTa and ModernBERT templates). Buckets hold pairs of nearly one length, so little is padding.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

T = TypeVar("T")
Tokens = np.ndarray  # (length,) int32, without special tokens

# Padded tokens in one forward: caches on a CPU, occupancy on a GPU. And tokens that could be computed in the time that
# a further bucket takes by itself: on a CPU some milliseconds of small products, on a GPU the start of all kernels.
TOKENS_PER_BUCKET = {"cpu": 4096, "cuda": 65536}
TOKENS_OF_A_START = {"cpu": 32, "cuda": 4096}
# In training a bucket on a CPU also takes a gradient of all word embeddings, 47 MB for MiniLM-L6.
TOKENS_OF_A_LEARNING_START = {"cpu": 128, "cuda": 4096}


class Piece(NamedTuple):
    """Special tokens between the texts of a pair, and their segment ids."""

    ids: list[int]
    segments: list[int]


class PairEncoder:
    """Joins tokenised queries and documents to model inputs of at most `max_length` tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.pad_id: Any = tokenizer.pad_token_id or 0
        self.has_segments = "token_type_ids" in tokenizer.model_input_names
        self._read_template()

    def _read_template(self) -> None:
        """See what the tokenizer puts before, between and behind two texts."""
        probe = self.tokenizer("a", "a", return_special_tokens_mask=True, return_token_type_ids=True)
        ids, special = probe["input_ids"], probe["special_tokens_mask"]
        segments = probe["token_type_ids"]
        texts = [place for place, flag in enumerate(special) if not flag]
        gap = next(place for place in texts if special[place + 1])  # last token of the query
        second = next(place for place in texts if place > gap)

        def piece(start: int, end: int | None) -> Piece:
            return Piece(ids[start:end], segments[start:end])

        self.before, self.between = piece(0, texts[0]), piece(gap + 1, second)
        self.behind = piece(texts[-1] + 1, None)
        self.query_segment, self.document_segment = segments[texts[0]], segments[second]
        self.num_special = len(self.before.ids) + len(self.between.ids) + len(self.behind.ids)

    def tokenize(self, texts: Sequence[str]) -> list[Tokens]:
        """Ids of each text without special tokens, whole: which text is longer decides how a pair is cut."""
        if not texts:
            return []
        encoded = self.tokenizer(list(texts), add_special_tokens=False, truncation=False, verbose=False)
        return [np.asarray(ids, dtype=np.int32) for ids in encoded["input_ids"]]

    def lengths(self, query: Tokens, document: Tokens) -> tuple[int, int]:
        """Tokens that remain of each text: the longer one is cut first (`truncation="longest_first"`)."""
        room = self.max_length - self.num_special
        short, long = sorted((len(query), len(document)))
        if short + long > room:
            long = max(short, room - short)
            if short + long > room:
                short, long = room // 2, room - room // 2
        return (short, long) if len(query) <= len(document) else (long, short)

    def pad(self, pairs: Sequence[tuple[Tokens, Tokens]]) -> dict[str, torch.Tensor]:
        """One padded batch: input_ids, attention_mask and (where the model has them) token_type_ids, all int64."""
        kept = [self.lengths(query, document) for query, document in pairs]
        pieces = []
        for (query, document), (query_length, document_length) in zip(pairs, kept, strict=True):
            texts = (query[:query_length], document[:document_length])
            pieces += [self.before.ids, texts[0], self.between.ids, texts[1], self.behind.ids]
        lengths = np.array(kept).sum(axis=1) + self.num_special
        mask = np.arange(lengths.max()) < lengths[:, None]
        ids = np.full(mask.shape, self.pad_id, dtype=np.int64)
        ids[mask] = np.concatenate(pieces)
        arrays = {"input_ids": ids, "attention_mask": mask.astype(np.int64)}
        if self.has_segments:
            arrays["token_type_ids"] = np.zeros_like(ids)
            arrays["token_type_ids"][mask] = self._segments(np.array(kept))
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def _segments(self, kept: np.ndarray) -> np.ndarray:
        """Segment ids of all pairs in a row, for (pairs, 2) lengths of query and document."""
        runs = [*self.before.segments, self.query_segment, *self.between.segments, self.document_segment]
        runs += self.behind.segments
        counts = np.ones((len(kept), len(runs)), dtype=np.int64)
        counts[:, [len(self.before.ids), len(self.before.ids) + 1 + len(self.between.ids)]] = kept
        return np.repeat(np.tile(runs, len(kept)), counts.ravel())

    def size(self, pair: tuple[Tokens, Tokens]) -> int:
        """Tokens of the joined pair, special tokens included."""
        return min(len(pair[0]) + len(pair[1]) + self.num_special, self.max_length)


def buckets(sizes: Sequence[int], tokens: int, start: int) -> list[list[int]]:
    """Positions, longest first, cut so that the least is computed: padded tokens, and `start` more for every bucket.

    No bucket's rows x longest row exceed `tokens`, but that one row always fits. Longest first: if memory does not
    suffice, the first bucket says so. Found by dynamic programming over the sorted sizes.
    """
    order = sorted(range(len(sizes)), key=lambda place: -sizes[place])
    lengths = np.array([sizes[place] for place in order], dtype=np.int64)
    least = np.zeros(len(order) + 1, dtype=np.int64)  # that the first so many rows cost
    begins = np.zeros(len(order) + 1, dtype=np.int64)  # where the last bucket of the first so many rows begins
    low = 0
    for end in range(1, len(order) + 1):
        while low < end - 1 and lengths[low] * (end - low) > tokens:
            low += 1
        costs = least[low:end] + lengths[low:end] * np.arange(end - low, 0, -1)
        begins[end] = low + int(costs.argmin())
        least[end] = costs.min() + start
    cut: list[list[int]] = []
    end = len(order)
    while end:
        cut.append(order[begins[end] : end])
        end = int(begins[end])
    return cut[::-1]


def ahead(items: Iterable[T]) -> Iterator[T]:
    """The items in their order, the next one made by another thread while the caller is busy with the last."""
    iterator = iter(items)
    with ThreadPoolExecutor(max_workers=1) as other:
        coming = other.submit(list[T], islice(iterator, 1))
        while made := coming.result():
            coming = other.submit(list[T], islice(iterator, 1))
            yield made[0]
