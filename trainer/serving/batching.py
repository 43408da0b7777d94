"""Pairs of many requests computed in common batches, without a large request holding up small ones.

One thread tokenises, one computes; everything else happens on the event loop. Which request is computed next is the
fair sojourn protocol's choice (Friedman and Henderson, SIGMETRICS 2003): the one that would be finished first if all
shared the model equally. So each is finished no later than under equal shares, a small one long before a large one
that came earlier, and a large one is not put off for ever.
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
from trainer.model.batching import Tokens
from trainer.serving.engine import Engine, Pair
from trainer.serving.measures import Measures
from trainer.serving.settings import RefusedError, Settings

CHARACTERS = 200_000  # tokenised at a time: about a tenth of a second, then it is another request's turn
LONGEST_RETRY = 60  # seconds that a client is told to wait at most
LOST = 3  # failures in a row; a single request may be too large for the memory
SMOOTHING = 0.1  # weight of the last batch in the measured speed


@dataclass(frozen=True)
class Texts:
    """What a request asks for: one query for all documents or one for each, and how documents are cut."""

    queries: Sequence[str]
    documents: Sequence[str]
    tokens_per_document: int | None = None
    truncate: bool = True  # otherwise a pair that is too long is refused


@dataclass(frozen=True)
class Scored:
    """Logits (documents,) float32, tokens that were computed, and seconds until the first pair was."""

    logits: np.ndarray
    tokens: int
    queued: float


class FairClock:
    """The time at which each request would be finished if all shared the model equally, counted in tokens."""

    def __init__(self) -> None:
        self.now = 0.0
        self._ends: list[float] = []  # a heap

    def enter(self, tokens: int) -> float:
        """Return the end of a request of so many tokens that begins now."""
        end = self.now + tokens
        heappush(self._ends, end)
        return end

    def advance(self, tokens: float) -> None:
        """Let so many computed tokens pass, shared by all requests that would still be there."""
        while self._ends:
            until_next = (self._ends[0] - self.now) * len(self._ends)
            if until_next > tokens:
                self.now += tokens / len(self._ends)
                return
            tokens -= until_next
            self.now = heappop(self._ends)

    def reset(self) -> None:
        """Forget all requests: nothing waits."""
        self._ends.clear()


@dataclass(eq=False)
class Work:
    """One request's pairs; `left` are the positions that nobody has computed, the shortest first."""

    pairs: list[Pair]
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
        """Remove and return positions of at most so many tokens.

        The longest pairs come first, so that those computed together are of nearly one length.
        """
        taken: list[int] = []
        while self.left and (tokens >= self.sizes[self.left[-1]] or (at_least_one and not taken)):
            taken.append(self.left.pop())
            tokens -= self.sizes[taken[-1]]
        return taken

    def receive(self, positions: Sequence[int], logits: np.ndarray) -> None:
        """Keep what was computed; the last part completes the answer."""
        self.logits[list(positions)] = logits
        self.missing -= len(positions)
        if not self.missing and not self.answer.done():
            self.answer.set_result(self.logits)


Part = tuple[Work, list[int]]


class Batcher:
    """Scores the texts of many requests at once; refuses what would wait too long, drops what nobody waits for."""

    def __init__(self, engine: Engine, settings: Settings, measures: Measures) -> None:
        self.engine = engine
        self.tokens_per_batch = settings.batch_tokens or engine.tokens_per_batch
        self.max_waiting = max(settings.max_waiting, settings.max_documents)
        self.waiting = 0  # documents
        self._measures = measures
        self._works: set[Work] = set()
        self._clock = FairClock()
        self._woken = asyncio.Event()
        self._failures = 0  # since something was computed
        self._speed = 0.0  # documents per second
        self._tokenising = ThreadPoolExecutor(1, "tokenise")
        self._computing = ThreadPoolExecutor(1, "compute")
        measures.watch(lambda: self.waiting)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Compute while the context is open."""
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
        """Whether the device seems lost: several requests failed, each by itself, and none was computed since."""
        return self._failures >= LOST

    @property
    def is_full(self) -> bool:
        """Whether even a single document would be refused."""
        return self.waiting >= self.max_waiting

    async def score(self, texts: Texts) -> Scored:
        """Return the logits of all documents.

        Raises RefusedError: 429 where too many documents wait, 422 for a pair that is too long and must not be cut, 424
        where the model fails. When the caller is cancelled, pairs that are not computed yet never are.
        """
        arrived = time.perf_counter()
        count = len(texts.documents)
        self._admit(count)
        try:
            unique, places = once(texts)
            pairs = await self._tokenized(texts, unique)
            if not texts.truncate:
                self._require_short(pairs, places)
            sizes = [min(self.engine.length(pair), self.engine.max_length) for pair in pairs]
            answer = asyncio.get_running_loop().create_future()
            work = Work(pairs, sizes, self._clock.enter(sum(sizes)), answer)
            logits = (await self._computed(work))[places]
        finally:
            self.waiting -= count
        if not np.isfinite(logits).all():
            raise RefusedError(424, "Backend", "the model gave a score that is not a finite number")
        return Scored(logits, sum(sizes), work.began - arrived)

    async def _computed(self, work: Work) -> np.ndarray:
        self._works.add(work)
        self._woken.set()
        try:
            return await work.answer
        finally:
            self._works.discard(work)

    def _admit(self, count: int) -> None:
        """Count the documents as waiting; raises RefusedError where too many wait already."""
        if self.waiting + count > self.max_waiting:
            seconds = ceil(self.waiting / self._speed) if self._speed else 1
            raise RefusedError(
                429,
                "Overloaded",
                f"{self.waiting} documents are waiting, at most {self.max_waiting} may; try again later",
                {"Retry-After": str(min(max(seconds, 1), LONGEST_RETRY))},
            )
        self.waiting += count

    async def _tokenized(self, texts: Texts, unique: Sequence[tuple[int, str]]) -> list[Pair]:
        """Return the pairs, tokenised in slices, so that requests take turns."""
        queries = await self._tokens(texts.queries)
        documents = await self._tokens([document for _, document in unique])
        cut = texts.tokens_per_document
        return [(queries[query], tokens[:cut]) for (query, _), tokens in zip(unique, documents, strict=True)]

    async def _tokens(self, texts: Sequence[str]) -> list[Tokens]:
        loop = asyncio.get_running_loop()
        found: list[Tokens] = []
        for some in slices(texts):
            found += await loop.run_in_executor(self._tokenising, self.engine.tokenize, some)
        return found

    def _require_short(self, pairs: Sequence[Pair], places: list[int]) -> None:
        """Raise RefusedError where a pair is too long for the model."""
        for place, pair in enumerate(pairs):
            if (length := self.engine.length(pair)) > self.engine.max_length:
                raise RefusedError(
                    422,
                    "Validation",
                    f"document {places.index(place)} has {length} tokens with the query, more than "
                    f"{self.engine.max_length}; shorten it, or let it be truncated",
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
        """Take pairs of the requests that the fair clock ends first, as many as are computed together."""
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
        """Compute one batch; where it fails, each request's part by itself, so that only the faulty one fails."""
        pairs = [work.pairs[position] for work, positions in parts for position in positions]
        tokens = sum(work.sizes[position] for work, positions in parts for position in positions)
        started = time.perf_counter()
        for work, _ in parts:
            work.began = work.began or started
        try:
            logits = await asyncio.get_running_loop().run_in_executor(self._computing, self.engine.score, pairs)
        except Exception as error:  # whatever the device raises
            await self._after_failure(parts, error)
            return
        self._failures = 0
        self._record(len(pairs), tokens, time.perf_counter() - started)
        for work, positions in parts:
            work.receive(positions, logits[: len(positions)])
            logits = logits[len(positions) :]

    async def _after_failure(self, parts: Sequence[Part], error: Exception) -> None:
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
        speed = documents / seconds
        self._speed = speed if not self._speed else (1 - SMOOTHING) * self._speed + SMOOTHING * speed
        self._clock.advance(tokens)
        self._measures.tokens.inc(tokens)
        self._measures.batch_tokens.observe(tokens)
        self._measures.batch_seconds.observe(seconds)


def once(texts: Texts) -> tuple[list[tuple[int, str]], list[int]]:
    """Return every pair once, as the position of its query and the document, and each document's place among them.

    Equal documents so get equal scores, which the rounding of a batch does not give them.
    """
    found: dict[tuple[int, str], int] = {}
    queries = len(texts.queries)
    pairs = ((position % queries, document) for position, document in enumerate(texts.documents))
    places = [found.setdefault(pair, len(found)) for pair in pairs]
    return list(found), places


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
