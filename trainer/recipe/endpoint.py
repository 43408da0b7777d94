"""References to models behind an HTTP endpoint, as `chat:MODEL@URL`."""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import urlsplit

CHAT = "chat:"
SHAPE = "chat:MODEL@URL, e.g. chat:gpt-4o-mini@https://api.openai.com/v1"


class Endpoint(NamedTuple):
    """A model and the base address of an OpenAI-compatible API."""

    model: str
    url: str

    @property
    def host(self) -> str:
        """Name of the host, without the port."""
        return urlsplit(self.url).hostname or ""


def read_endpoint(reference: str) -> Endpoint:
    """Return the parts of `chat:MODEL@URL`; raise ValueError if it has another form.

    An address with a user, a password or parameters is refused: recipes are saved in run folders and model cards, where
    no key may be.
    """
    if not reference.startswith(CHAT):
        raise ValueError(f"is an endpoint, {SHAPE}, got {reference!r:.100}")
    model, at, url = reference.removeprefix(CHAT).rpartition("@http")
    url = f"http{url}".rstrip("/")
    try:
        parts = urlsplit(url)
        usable = bool(at and model and parts.hostname and parts.scheme in ("http", "https") and parts.port != 0)
    except ValueError:  # a port that is no number
        parts, usable = urlsplit(""), False
    if not usable or any(letter.isspace() for letter in reference):
        raise ValueError(f"is an endpoint, {SHAPE}")  # what was given may hold a key
    if "@" in url or parts.query or parts.fragment:
        raise ValueError(
            "holds a user name, a password or parameters in its address; recipes are saved and shared, so give the "
            "key as an environment variable"
        )
    return Endpoint(model, url)
