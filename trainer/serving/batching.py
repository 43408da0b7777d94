"""Score pairs of many requests in common batches, so that a large request does not delay small ones.

One thread tokenises, one computes; everything else runs on the event loop. The next request is chosen by the fair
sojourn protocol (Friedman and Henderson, SIGMETRICS 2003): the one that would finish first if all requests shared the
model equally. So each request finishes no later than with equal shares, a small one long before a large one that
arrived earlier, and a large one does not starve.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from heapq import heappop, heappush
from math import ceil

import numpy as np

from trainer.errors import one_line
from trainer.model.batching import Role, Tokens
from trainer.serving.engine import Engine, Pair
from trainer.serving.measures import Measures
from trainer.serving.settings import RefusedError, Settings

CHARACTERS = 200_000  # tokenised at a time, in about a tenth of a second, before another request has its turn
LONGEST_RETRY = 60  # most seconds in the header Retry-After
LOST = 3  # failures in a row after which the device is considered lost; a single request may just be too large
SMOOTHING = 0.1  # weight of the last batch in the measured speed


@dataclass(frozen=True)
class Texts:
    """The texts of a request, with one query for all documents or one for each, and the options of truncation."""

    queries: Sequence[str]
    documents: Sequence[str]
    tokens_per_document: int | None = None
    truncate: bool = True  # False: a pair that is too long is refused


@dataclass(frozen=True)
class Scored:
    """Logits (documents,) float32, the number of computed tokens, and seconds until the first pair was computed."""

    logits: np.ndarray
    tokens: int
    queued: float


class FairClock:
    """A clock in tokens that gives each request's end time if all requests shared the model equally."""

    def __init__(self) -> None:
        self.now = 0.0
        self._ends: list[float] = []  # a heap of end times

    def enter(self, tokens: int) -> float:
        """Return the end time of a request with this number of tokens that starts now."""
        end = self.now + tokens
        heappush(self._ends, end)
        return end

    def advance(self, tokens: float) -> None:
        """Advance the clock by a number of computed tokens, shared by all requests that have not ended."""
        while self._ends:
            until_next = (self._ends[0] - self.now) * len(self._ends)
            if until_next > tokens:
                self.now += tokens / len(self._ends)
                return
            tokens -= until_next
            self.now = heappop(self._ends)

    def reset(self) -> None:
        """Remove all requests, when none is waiting."""
        self._ends.clear()


@dataclass(eq=False)
class Work:
    """The pairs of one request, one for each window of a document.

    `left` are the positions not computed yet, the shortest pair first.
    """

    pairs: Sequence[Pair]
    sizes: list[int]
    end: float  # by the fair clock
    answer: asyncio.Future[np.ndarray]
    left: list[int] = field(init=False)
    missing: int = field(init=False)
    began: float = 0.0

    def __post_init__(self) -> None:
        self.left = sorted(range(len(self.sizes)), key=lambda position: self.sizes[position])
        self.missing = len(self.sizes)
        self.logits = np.empty(len(self.sizes), dtype=np.float32)

    def take(self, tokens: int, at_least_one: bool) -> list[int]:
        """Remove and return positions of pairs with at most this number of tokens.

        The longest pairs come first, so that pairs in one batch have similar lengths.
        """
        taken: list[int] = []
        while self.left and (tokens >= self.sizes[self.left[-1]] or (at_least_one and not taken)):
            taken.append(self.left.pop())
            tokens -= self.sizes[taken[-1]]
        return taken

    def receive(self, positions: Sequence[int], logits: np.ndarray) -> None:
        """Store logits of some positions; the last ones complete the answer."""
        self.logits[list(positions)] = logits
        self.missing -= len(positions)
        if not self.missing and not self.answer.done():
            self.answer.set_result(self.logits)


Part = tuple[Work, list[int]]


class Batcher:
    """Scores the texts of many requests, refuses requests over the limits, and drops those of disconnected clients."""

    def __init__(self, engine: Engine, settings: Settings, measures: Measures) -> None:
        self.engine = engine
        self.tokens_per_batch = settings.batch_tokens or engine.tokens_per_batch
        self.max_waiting = max(settings.max_waiting, settings.max_documents)
        self.waiting = 0  # documents; one that is read in windows counts once for each of them
        self._measures = measures
        self._works: set[Work] = set()
        self._clock = FairClock()
        self._woken = asyncio.Event()
        self._failures = 0  # in a row
        self._speed = 0.0  # documents per second
        self._tokenising = ThreadPoolExecutor(1, "tokenise")
        self._computing = ThreadPoolExecutor(1, "compute")
        measures.watch(lambda: self.waiting)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Compute batches while the context is open."""
        task = asyncio.create_task(self._compute_all())
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            self._tokenising.shutdown()
            self._computing.shutdown()

    @property
    def broken(self) -> bool:
        """True if the device seems lost: several requests in a row failed, each computed in a batch of its own."""
        return self._failures >= LOST

    @property
    def is_full(self) -> bool:
        """True if even a request of one document would be refused."""
        return self.waiting >= self.max_waiting

    async def score(self, texts: Texts) -> Scored:
        """Return the logits of all documents.

        Raise RefusedError: 429 if too many documents wait, 422 for a pair that is too long without truncation,
        424 if the model fails. When the caller is cancelled, its remaining pairs are dropped.
        """
        arrived = time.perf_counter()
        count = len(texts.documents)
        self._admit(count)
        try:
            unique, positions = unique_pairs(texts)
            windowed = self.engine.cut(await self._tokenize_pairs(texts, unique))
            pairs = windowed.pairs
            further = len(pairs) - len(windowed.counts)
            self.waiting, count = self.waiting + further, count + further
            if not texts.truncate:
                self._require_short([pairs[start] for start in windowed.starts.tolist()], positions)
            sizes = [min(self.engine.length(pair), self.engine.max_length) for pair in pairs]
            answer = asyncio.get_running_loop().create_future()
            work = Work(pairs, sizes, self._clock.enter(sum(sizes)), answer)
            logits = windowed.best(await self._wait_for(work))[positions]
        finally:
            self.waiting -= count
        if not np.isfinite(logits).all():
            raise RefusedError(424, "Backend", "the model returned a score that is not a finite number")
        return Scored(logits, sum(sizes), work.began - arrived)

    async def _wait_for(self, work: Work) -> np.ndarray:
        """Schedule a request's pairs, and return their logits when all are computed."""
        self._works.add(work)
        self._woken.set()
        try:
            return await work.answer
        finally:
            self._works.discard(work)

    def _admit(self, count: int) -> None:
        """Count the documents as waiting; raise RefusedError if too many wait already."""
        if self.waiting + count > self.max_waiting:
            seconds = ceil(self.waiting / self._speed) if self._speed else 1
            raise RefusedError(
                429,
                "Overloaded",
                f"{self.waiting} documents are waiting, at most {self.max_waiting} are allowed; try again later",
                {"Retry-After": str(min(max(seconds, 1), LONGEST_RETRY))},
            )
        self.waiting += count

    async def _tokenize_pairs(self, texts: Texts, unique: Sequence[tuple[int, str]]) -> list[Pair]:
        """Return the tokens of the pairs."""
        queries = await self._tokenize(texts.queries, "query")
        documents = await self._tokenize([document for _, document in unique], "document")
        limit = texts.tokens_per_document
        return [(queries[query], tokens[:limit]) for (query, _), tokens in zip(unique, documents, strict=True)]

    async def _tokenize(self, texts: Sequence[str], role: Role) -> list[Tokens]:
        """Return the tokens of the texts, computed in slices, so that requests take turns."""
        loop = asyncio.get_running_loop()
        tokens: list[Tokens] = []
        for some in slices(texts):
            tokens += await loop.run_in_executor(self._tokenising, self.engine.tokenize, some, role)
        return tokens

    def _require_short(self, pairs: Sequence[Pair], positions: list[int]) -> None:
        """Raise RefusedError if a pair is too long; `positions` has each document's index in `pairs`."""
        for index, pair in enumerate(pairs):
            if (length := self.engine.length(pair)) > self.engine.max_length:
                raise RefusedError(
                    422,
                    "Validation",
                    f"document {positions.index(index)} has {length} tokens with the query, more than "
                    f"{self.engine.max_length}; shorten it, or allow truncation",
                )

    async def _compute_all(self) -> None:
        """Compute batch after batch until cancelled."""
        while True:
            parts = self._next_batch()
            if not parts:
                self._clock.reset()
                self._woken.clear()
                await self._woken.wait()
            else:
                await self._compute(parts)

    def _next_batch(self) -> list[Part]:
        """Take the pairs of one batch, from the requests with the earliest end times on the fair clock."""
        parts: list[Part] = []
        room = self.tokens_per_batch
        for work in sorted(self._works, key=lambda work: work.end):
            if taken := work.take(room, at_least_one=not parts):
                parts.append((work, taken))
                room -= sum(work.sizes[position] for position in taken)
            if work.left:
                break
        return parts

    async def _compute(self, parts: Sequence[Part]) -> None:
        """Compute one batch; if it fails, compute each request's part alone, so that only the bad one fails."""
        pairs = [work.pairs[position] for work, positions in parts for position in positions]
        tokens = sum(work.sizes[position] for work, positions in parts for position in positions)
        started = time.perf_counter()
        for work, _ in parts:
            work.began = work.began or started
        try:
            logits = await asyncio.get_running_loop().run_in_executor(self._computing, self.engine.score, pairs)
        except Exception as error:  # the device may raise anything
            await self._after_failure(parts, error)
            return
        self._failures = 0
        self._record(len(pairs), tokens, time.perf_counter() - started)
        for work, positions in parts:
            work.receive(positions, logits[: len(positions)])
            logits = logits[len(positions) :]

    async def _after_failure(self, parts: Sequence[Part], error: Exception) -> None:
        """Compute the parts of a failed batch one by one; refuse the request of a part that failed alone."""
        if len(parts) > 1:
            for part in parts:
                await self._compute([part])
            return
        self._failures += 1
        ((work, _),) = parts
        self._works.discard(work)
        if not work.answer.done():
            sentence = f"the model could not compute this request: {type(error).__name__}: {one_line(error)[:200]}"
            work.answer.set_exception(RefusedError(424, "Backend", sentence))

    def _record(self, documents: int, tokens: int, seconds: float) -> None:
        """Update speed, fair clock and metrics after a batch."""
        speed = documents / seconds
        self._speed = speed if not self._speed else (1 - SMOOTHING) * self._speed + SMOOTHING * speed
        self._clock.advance(tokens)
        self._measures.tokens.inc(tokens)
        self._measures.batch_tokens.observe(tokens)
        self._measures.batch_seconds.observe(seconds)


def unique_pairs(texts: Texts) -> tuple[list[tuple[int, str]], list[int]]:
    """Return the distinct pairs (position of the query, document), and each document's index in them.

    So equal documents have equal scores; in one batch rounding could make them differ.
    """
    indices: dict[tuple[int, str], int] = {}
    queries = len(texts.queries)
    pairs = ((position % queries, document) for position, document in enumerate(texts.documents))
    positions = [indices.setdefault(pair, len(indices)) for pair in pairs]
    return list(indices), positions


def slices(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Yield the texts in slices of at most CHARACTERS, or of a single text that is longer."""
    start = characters = 0
    for position, text in enumerate(texts):
        if position > start and characters + len(text) > CHARACTERS:
            yield texts[start:position]
            start, characters = position, 0
        characters += len(text) + 1
    if start < len(texts):
        yield texts[start:]
