"""Texts to tensors: tokenised once, joined by the tokenizer's own template, batched by length.

A query occurs in many pairs and a document in many more, so each text is tokenised once without special tokens, and
pairs are joined from the token ids; the result equals `tokenizer(query, document, truncation=True)` (tested for BERT,
RoBERTa and ModernBERT templates). Buckets hold pairs of similar length, so that there is little padding.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

T = TypeVar("T")
Tokens = np.ndarray  # (length,) int32, without special tokens
Role = Literal["query", "document"]

# Padded tokens in one forward pass: limited by caches on a CPU, by occupancy on a GPU.
TOKENS_PER_BUCKET = {"cpu": 4096, "cuda": 65536}
NEVER = 1 << 60  # cost of what is not allowed
MEASURED_PAIRS = 12  # on which precisions are compared


class Grid(NamedTuple):
    """Multiples to which the rows and the length of batches are rounded."""

    rows: int
    length: int


class Shapes(NamedTuple):
    """How pairs are cut into batches: the grid, and the fixed cost of a batch in tokens computed in that time."""

    grid: Grid
    start: int


ANY_SHAPE = Grid(1, 1)
# In bf16 on a CPU the products of each new shape are compiled, for 3.6 ms each, about twenty for a batch in training.
# On lists of CoSQA rounding adds 2 % of padding, and instead of 3.4 new shapes a step there is one in twenty steps.
COMPILED = Grid(4, 16)
# Joined, only attention has a batch's shape, so that a new shape and another batch cost less.
JOINED = Shapes(Grid(4, 8), 24)
# Milliseconds of small products on a CPU, kernel launches on a GPU. In training on a CPU each batch also computes a
# gradient of all matrices, 43 MB for MiniLM-L6.
STARTS = {("cpu", False): 32, ("cpu", True): 64}
START = 4096


class Piece(NamedTuple):
    """Ids of consecutive special tokens in the template of a pair, and their segment ids."""

    ids: list[int]
    segments: list[int]


class PairEncoder:
    """Joins tokenised queries and documents to model inputs of at most `max_length` tokens."""

    is_prompt = False  # whether they are joined by a decoder's prompt

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.pad_id: Any = tokenizer.pad_token_id or 0
        self.has_segments = "token_type_ids" in tokenizer.model_input_names
        self._read_template()

    def _read_template(self) -> None:
        """Read the special tokens before, between and after the texts of a pair from an encoded example."""
        probe = self.tokenizer("a", "a", return_special_tokens_mask=True, return_token_type_ids=True)
        ids, special = probe["input_ids"], probe["special_tokens_mask"]
        segments = probe["token_type_ids"]
        texts = [index for index, flag in enumerate(special) if not flag]
        last = next(index for index in texts if special[index + 1])  # of the query
        second = next(index for index in texts if index > last)  # first of the document

        def piece(start: int, end: int | None) -> Piece:
            return Piece(ids[start:end], segments[start:end])

        self.before, self.between = piece(0, texts[0]), piece(last + 1, second)
        self.after = piece(texts[-1] + 1, None)
        self.query_segment, self.document_segment = segments[texts[0]], segments[second]
        self.num_special = len(self.before.ids) + len(self.between.ids) + len(self.after.ids)

    def tokenize(self, texts: Sequence[str], role: Role = "document") -> list[Tokens]:
        """Return the ids of each text, without special tokens and not truncated: truncation depends on the pair.

        The role only matters in a prompt (`model/prompt.py`).
        """
        del role
        if not texts:
            return []
        encoded = self.tokenizer(list(texts), add_special_tokens=False, truncation=False, verbose=False)
        return [np.asarray(ids, dtype=np.int32) for ids in encoded["input_ids"]]

    def tokenize_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[Tokens, Tokens]]:
        """Return the tokens of (query, document) pairs; each text is tokenised once."""
        queries = list(dict.fromkeys(query for query, _ in pairs))
        documents = list(dict.fromkeys(document for _, document in pairs))
        of_queries = dict(zip(queries, self.tokenize(queries, "query"), strict=True))
        of_documents = dict(zip(documents, self.tokenize(documents, "document"), strict=True))
        return [(of_queries[query], of_documents[document]) for query, document in pairs]

    def lengths(self, query: Tokens, document: Tokens) -> tuple[int, int]:
        """Return the truncated lengths of query and document; the longer one is cut first, as by `longest_first`."""
        room = self.max_length - self.num_special
        short, long = sorted((len(query), len(document)))
        if short + long > room:
            long = max(short, room - short)
            if short + long > room:
                short, long = room // 2, room - room // 2
        return (short, long) if len(query) <= len(document) else (long, short)

    def room(self, query: Tokens) -> int:
        """Return the number of tokens of a long document that are read with a query."""
        room = self.max_length - self.num_special
        return max(room - len(query), room // 2)

    def cut(self, query: Tokens, document: Tokens) -> tuple[Tokens, Tokens]:
        """Return the truncated texts in the order of the template."""
        query_length, document_length = self.lengths(query, document)
        return query[:query_length], document[:document_length]

    def pad(self, pairs: Sequence[tuple[Tokens, Tokens]], multiple: int = 1) -> dict[str, torch.Tensor]:
        """Return a padded batch: input_ids, attention_mask and (if the model has them) token_type_ids.

        All are (pairs, length) int64. The length is a multiple of `multiple`, or the longest that is read.
        """
        cut = [self.cut(query, document) for query, document in pairs]
        text_lengths = np.array([[len(first), len(second)] for first, second in cut])
        pieces = []
        for first, second in cut:
            pieces += [self.before.ids, first, self.between.ids, second, self.after.ids]
        lengths = text_lengths.sum(axis=1) + self.num_special
        mask = np.arange(rounded(lengths.max(), multiple, self.max_length)) < lengths[:, None]
        ids = np.full(mask.shape, self.pad_id, dtype=np.int64)
        ids[mask] = np.concatenate(pieces)
        arrays = {"input_ids": ids, "attention_mask": mask.astype(np.int64)}
        if self.has_segments:
            arrays["token_type_ids"] = np.zeros_like(ids)
            arrays["token_type_ids"][mask] = self._segments(text_lengths)
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def _segments(self, text_lengths: np.ndarray) -> np.ndarray:
        """Return the concatenated segment ids of all pairs, for lengths (pairs, 2) of query and document."""
        runs = [*self.before.segments, self.query_segment, *self.between.segments, self.document_segment]
        runs += self.after.segments
        counts = np.ones((len(text_lengths), len(runs)), dtype=np.int64)
        counts[:, [len(self.before.ids), len(self.before.ids) + 1 + len(self.between.ids)]] = text_lengths
        return np.repeat(np.tile(runs, len(text_lengths)), counts.ravel())

    def size(self, pair: tuple[Tokens, Tokens]) -> int:
        """Return the number of tokens of the joined and truncated pair, including special tokens."""
        return min(len(pair[0]) + len(pair[1]) + self.num_special, self.max_length)


def shapes_for(device: str, precision: str, joins: bool, training: bool) -> Shapes:
    """Return how pairs are cut on a kind of device; `joins` says whether batches of a training pass are joined."""
    if joins and training:
        return JOINED
    grid = COMPILED if (device, precision) == ("cpu", "bf16") else ANY_SHAPE
    return Shapes(grid, STARTS.get((device, training), START))


def rounded(length: int, multiple: int, longest: int) -> int:
    """Return the length rounded up to a multiple, but not beyond the longest that is read."""
    return max(length, min(-(-length // multiple) * multiple, longest))


def buckets(sizes: Sequence[int], tokens: int, start: int, grid: Grid = ANY_SHAPE, longest: int = 0) -> list[list[int]]:
    """Return the positions of pairs of these sizes in buckets of the least total cost, longest pairs first.

    A bucket costs its padded tokens plus `start`, the fixed cost in tokens. Rows times longest row of a bucket are at
    most `tokens`, except for a bucket of one row. Because the longest come first, running out of memory shows in the
    first bucket. Lengths are rounded up as `rounded` does, and rows are multiples of the grid's, except in the last
    bucket and where so many do not fit. The optimum is found by dynamic programming over the sorted sizes.
    """
    order = sorted(range(len(sizes)), key=lambda position: -sizes[position])
    lengths = np.array([rounded(sizes[position], grid.length, longest) for position in order], dtype=np.int64)
    least = np.zeros(len(order) + 1, dtype=np.int64)  # least[n]: least cost of the first n rows
    begins = np.zeros(len(order) + 1, dtype=np.int64)  # begins[n]: first row of the last bucket of the first n rows
    low = 0
    for end in range(1, len(order) + 1):
        while low < end - 1 and lengths[low] * (end - low) > tokens:
            low += 1
        rows = np.arange(end - low, 0, -1)
        costs = least[low:end] + lengths[low:end] * rows
        if grid.rows > 1 and end < len(order):
            costs[(rows % grid.rows > 0) & (lengths[low:end] * grid.rows <= tokens)] = NEVER
        begins[end] = low + int(costs.argmin())
        least[end] = min(costs.min() + start, NEVER)
    cut: list[list[int]] = []
    end = len(order)
    while end:
        cut.append(order[begins[end] : end])
        end = int(begins[end])
    return cut[::-1]


def within(most: int, items: Sequence[T], sizes: Sequence[int]) -> Iterator[list[T]]:
    """Yield successive items whose sizes add up to `most` at most; a larger item is yielded alone."""
    taken: list[T] = []
    total = 0
    for item, size in zip(items, sizes, strict=True):
        if taken and total + size > most:
            yield taken
            taken, total = [], 0
        taken.append(item)
        total += size
    yield taken


def random_pairs(vocabulary: int, max_length: int) -> list[tuple[Tokens, Tokens]]:
    """Return pairs of random tokens, the longest of `max_length`, on which precisions are compared."""
    ids = np.random.default_rng(0).integers(vocabulary, size=max_length, dtype=np.int32)
    lengths = np.linspace(max_length / 4, max_length, MEASURED_PAIRS).astype(int).tolist()
    return [(ids[:8], ids[:length]) for length in lengths]


def prefetch(items: Iterable[T]) -> Iterator[T]:
    """Yield the items in order, while another thread already computes the next one."""
    iterator = iter(items)
    with ThreadPoolExecutor(max_workers=1) as other:
        pending = other.submit(list[T], islice(iterator, 1))
        while item := pending.result():
            pending = other.submit(list[T], islice(iterator, 1))
            yield item[0]
