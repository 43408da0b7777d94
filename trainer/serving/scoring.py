"""Scoring the texts of one request, for all routes, and the errors that each of them may answer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

from fastapi import Request

from trainer.serving.batching import Batcher, Scored, Texts
from trainer.serving.bodies import ErrorBody
from trainer.serving.measures import Measures
from trainer.serving.settings import CLIENT_CLOSED, RefusedError

T = TypeVar("T")
REASONS = {
    400: "Not JSON, or an empty query or list",
    401: "The API key is missing or wrong",
    408: "The body did not arrive in time",
    413: "The body is too large",
    415: "The content type of the body is not JSON",
    422: "A key has the wrong type or value, or there are too many documents",
    424: "The model failed",
    429: "Too many documents are waiting; the header Retry-After has the seconds to wait",
    503: "The server stopped before it could answer",
}
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": reason} for status, reason in REASONS.items()
}


async def score_texts(request: Request, batcher: Batcher, measures: Measures, texts: Texts) -> Scored:
    """Score the texts of a request, unless its client disconnects, and record log values and metrics."""
    record = request.state.record
    record["documents"] = len(texts.documents)
    measures.documents.observe(len(texts.documents))
    scored = await unless_disconnected(request, batcher.score(texts))
    record |= {"tokens": scored.tokens, "queue_ms": round(1000 * scored.queued, 1)}
    measures.queue_seconds.observe(scored.queued)
    return scored


async def unless_disconnected(request: Request, answer: Awaitable[T]) -> T:
    """Await and return the answer; if the client disconnects first, cancel it and raise RefusedError."""
    working, watching = asyncio.ensure_future(answer), asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise RefusedError(CLIENT_CLOSED, "Validation", "the client disconnected")
        return working.result()
    finally:
        working.cancel()
        watching.cancel()


async def _disconnected(request: Request) -> None:
    """Return when the client has disconnected."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
