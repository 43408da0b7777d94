"""Limits of the server, and the refusal of a request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

MIB = 1 << 20
CLIENT_CLOSED = 499  # nobody reads this status; it is for log and metrics, as in nginx


@dataclass(frozen=True)
class Settings:
    """Limits of one server; a `key` that clients must send, or None."""

    key: str | None = field(default=None, repr=False)
    max_documents: int = 1000  # of one request
    max_waiting: int = 4000  # documents of all requests that are accepted and not answered
    max_body: int = 10 * MIB  # bytes
    body_seconds: float = 30.0  # in which a request's body has to arrive
    batch_tokens: int | None = None  # computed together; None: what suits the device
    page: bool = True


class RefusedError(Exception):
    """A request that gets no ranking: an HTTP status, TEI's name for the kind of error, and one sentence."""

    def __init__(self, status: int, kind: str, sentence: str, headers: Mapping[str, str] | None = None) -> None:
        self.status = status
        self.kind = kind
        self.sentence = sentence
        self.headers = dict(headers or {})
        super().__init__(sentence)
