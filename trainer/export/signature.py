"""A hash at the end of a model card, by which a push sees whether the card was edited after the export."""

from __future__ import annotations

import hashlib
import re

MARK = re.compile(r"\n<!-- domain-reranker: ([0-9a-f]{64}) -->\s*\Z")


def signed(card: str) -> str:
    """Return a card with its hash in a comment at the end, which no page shows."""
    return f"{card}\n<!-- domain-reranker: {_hash(card)} -->\n"


def is_unedited(card: str) -> bool:
    """Return whether a card is signed and still the text that was signed; line ends make no difference."""
    text = card.replace("\r\n", "\n")
    mark = MARK.search(text)
    return mark is not None and mark[1] == _hash(text[: mark.start()])


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
