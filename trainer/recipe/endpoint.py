"""References to models behind an HTTP endpoint: `chat:MODEL@URL`, and `rerank:URL` or `rerank:MODEL@URL`."""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import urlsplit

CHAT, RERANK = "chat:", "rerank:"
SHAPES = {
    CHAT: "chat:MODEL@URL, e.g. chat:gpt-4o-mini@https://api.openai.com/v1",
    RERANK: "rerank:URL or rerank:MODEL@URL, e.g. rerank:http://localhost:8000/rerank",
}


class Endpoint(NamedTuple):
    """A model and its address: the base of an OpenAI-compatible API, or the route of a rerank server.

    `model` is empty for a rerank server whose only model has no name in the recipe. `kind` is the prefix.
    """

    model: str
    url: str
    kind: str = CHAT

    @property
    def host(self) -> str:
        """Name of the host, without the port."""
        return urlsplit(self.url).hostname or ""

    @property
    def identity(self) -> str:
        """The name by which answers are kept: the model, which may move to another address; else the address."""
        return self.model or self.url


def is_endpoint(reference: str) -> bool:
    """Return whether a reference to a model is one to an endpoint, well-formed or not."""
    return reference.startswith((CHAT, RERANK))


def read_endpoint(reference: str, kinds: tuple[str, ...] = (CHAT,)) -> Endpoint:
    """Return the parts of a reference of one of the kinds; raise ValueError if it has another form.

    An address with a user, a password or parameters is refused: recipes are saved in run folders and model cards, where
    no key may be.
    """
    shapes = " or ".join(SHAPES[kind] for kind in kinds)
    kind = next((kind for kind in kinds if reference.startswith(kind)), None)
    if kind is None:
        raise ValueError(f"is an endpoint, {shapes}, got {without_address(reference)!r:.100}")
    rest = reference.removeprefix(kind)
    model, at, url = ("", "@", rest.removeprefix("http")) if rest.startswith("http") else rest.rpartition("@http")
    url = f"http{url}".rstrip("/")
    try:
        parts = urlsplit(url)
        usable = bool(at and parts.hostname and parts.scheme in ("http", "https") and parts.port != 0)
    except ValueError:  # a port that is no number
        parts, usable = urlsplit(""), False
    if not usable or not (model or kind == RERANK) or any(letter.isspace() for letter in reference):
        raise ValueError(f"is an endpoint, {shapes}")  # what was given may hold a key
    if "@" in url or parts.query or parts.fragment:
        raise ValueError(
            "holds a user name, a password or parameters in its address; recipes are saved and shared, so give the "
            "key as an environment variable"
        )
    return Endpoint(model, url, kind)


def without_address(reference: str) -> str:
    """Return a reference up to its address, which may hold a key."""
    return reference.partition("http")[0]
