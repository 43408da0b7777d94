"""Middleware for every request: API key, content type, limits on size and time of the body, access log, metrics.

The log has one JSON object on each line, with numbers and the route's path but no text from a client.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import re
import time
from datetime import datetime, timezone
from typing import Any
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trainer.serving.bodies import error_body
from trainer.serving.measures import Measures
from trainer.serving.settings import RefusedError, Settings

PROBES = {"/health", "/ready", "/ping", "/metrics"}
PUBLIC = PROBES | {"/"}  # paths that need no key with GET, as in TEI
ENOUGH = (
    10  # times the limit: up to this size a large body is read and discarded, so that the client reads the response
)
REQUEST_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)
SECURITY = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
STOPPED = RefusedError(
    503,
    "Unhealthy",
    "the server stopped before it could answer; try again",
    {"Connection": "close", "Retry-After": "1"},
)
log = logging.getLogger("trainer.serving.access")


class Guard:
    """ASGI middleware around all routes."""

    def __init__(self, app: ASGIApp, settings: Settings, measures: Measures) -> None:
        self.app = app
        self.settings = settings
        self.measures = measures

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request and write its log line."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        wanted = Headers(scope=scope).get("x-request-id", "")
        name = wanted if REQUEST_ID.fullmatch(wanted) else uuid4().hex
        record: dict[str, Any] = {"id": name, "status": 500}
        scope.setdefault("state", {})["record"] = record

        async def send_noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                record["status"] = message["status"]
                MutableHeaders(scope=message).update({"X-Request-ID": name, **SECURITY})
            await send(message)

        try:
            self._require_key(scope)
            await self.app(scope, await self._with_body(scope, receive), send_noted)
        except RefusedError as refused:
            await refusal(refused)(scope, receive, send_noted)
        except asyncio.CancelledError:
            if not self.measures.is_stopping():
                raise
            # The time for accepted requests is over.
            self.measures.unfinished += 1
            await refusal(STOPPED)(scope, receive, send_noted)
        finally:
            self._write(scope, record, time.perf_counter() - started)

    def _require_key(self, scope: Scope) -> None:
        """Raise RefusedError if the server has a key and the request does not have it."""
        key = self.settings.key
        if key is None or (scope["method"] in ("GET", "HEAD") and scope["path"] in PUBLIC):
            return
        scheme, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
        right = hmac.compare_digest(given.strip().encode("latin-1", "replace"), key.encode())
        if scheme.lower() != "bearer" or not right:
            sentence = "the API key is missing or wrong: send the header `Authorization: Bearer KEY`"
            raise RefusedError(401, "Unauthorized", sentence, {"WWW-Authenticate": "Bearer"})

    async def _with_body(self, scope: Scope, receive: Receive) -> Receive:
        """Read the body, and return a `receive` that gives it to the route; raise RefusedError: 408, 413, 415."""
        if scope["method"] != "POST":
            return receive
        try:
            body = await asyncio.wait_for(self._read(scope, receive), self.settings.body_seconds)
        except asyncio.TimeoutError:
            sentence = f"the body did not arrive within {self.settings.body_seconds:g} seconds"
            raise RefusedError(408, "Validation", sentence, {"Connection": "close"}) from None
        kind = Headers(scope=scope).get("content-type", "").partition(";")[0].strip().lower()
        if body and kind != "application/json" and not kind.endswith("+json"):
            raise RefusedError(415, "Validation", "send JSON, with the header `Content-Type: application/json`")
        if Headers(scope=scope).get("content-encoding", "identity").strip().lower() not in ("", "identity"):
            raise RefusedError(415, "Validation", "send the body uncompressed, without the header `Content-Encoding`")
        left: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return left.pop() if left else await receive()

        return replay

    async def _read(self, scope: Scope, receive: Receive) -> bytes:
        """Return the body; one over the limit is read and discarded, up to ENOUGH times the limit."""
        most = self.settings.max_body
        announced = Headers(scope=scope).get("content-length", "0")
        size, parts, more = 0, [], True
        large = announced.isdecimal() and int(announced) > ENOUGH * most
        while more and not large:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise RefusedError(499, "Validation", "the client disconnected")
            size += len(message.get("body", b""))
            if size <= most:
                parts.append(message.get("body", b""))
            else:
                parts.clear()
            more, large = message.get("more_body", False), size > ENOUGH * most
        if large or size > most:
            raise RefusedError(413, "Validation", f"the body is larger than {most} bytes", {"Connection": "close"})
        return b"".join(parts)

    def _write(self, scope: Scope, record: dict[str, Any], seconds: float) -> None:
        """Count the request and write its log line, unless it is a successful probe."""
        route = getattr(scope.get("route"), "path", "other")
        self.measures.requests.labels(route, str(record["status"])).inc()
        self.measures.seconds.labels(route).observe(seconds)
        if route in PROBES and record["status"] == 200:
            return
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        line = {"time": now, "method": scope["method"], "route": route, **record, "ms": round(1000 * seconds, 1)}
        log.info(json.dumps(line))


def refusal(refused: RefusedError, path: str = "") -> JSONResponse:
    """Return the response of a refused request for a path."""
    return JSONResponse(error_body(refused, path), refused.status, refused.headers)
