"""Limits of the server, and the exception that refuses a request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

MIB = 1 << 20
CLIENT_CLOSED = 499  # as in nginx, for log and metrics only: the client has disconnected


@dataclass(frozen=True)
class Settings:
    """Settings of one server."""

    key: str | None = field(default=None, repr=False)  # API key that clients must send; None: no key is needed
    max_documents: int = 1000  # in one request
    max_waiting: int = 4000  # documents in all accepted requests that are not answered yet
    max_body: int = 10 * MIB  # bytes of a request's body
    body_seconds: float = 30.0  # time limit for receiving a body
    batch_tokens: int | None = None  # tokens in one batch; None: the default of the device
    page: bool = True  # serve the HTML page
    search: bool = True  # search the corpus of a run


class RefusedError(Exception):
    """A refused request: an HTTP status, TEI's name for the kind of error, and a message of one sentence."""

    def __init__(self, status: int, kind: str, sentence: str, headers: Mapping[str, str] | None = None) -> None:
        self.status = status
        self.kind = kind
        self.sentence = sentence
        self.headers = dict(headers or {})
        super().__init__(sentence)
