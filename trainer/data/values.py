"""Values in pairs to texts: a text, a list of texts, objects with title and text, or chat messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

TEXT_KEYS = ("text", "contents", "content", "body", "passage")
NESTED = "it is nested, write the text into a column of its own"


class NoTextError(ValueError):
    """A value contains no text."""


def texts_of(value: Any) -> list[str]:
    """Return the texts of a field, empty for None and an empty list; raises NoTextError for values of other types."""
    if value is None:
        return []
    if isinstance(value, list) and not _is_chat(value):
        return [text for part in value if part is not None for text in _texts_of_part(part)]
    return _texts_of_part(value)


def _texts_of_part(part: Any) -> list[str]:
    if isinstance(part, str):
        return [part]
    if isinstance(part, Mapping):
        return [_text_of_object(part)]
    if isinstance(part, list) and _is_chat(part):
        return [_text_of_chat(part)]
    raise NoTextError(f"got {part!r:.60}")


def _is_chat(value: Sequence[Any]) -> bool:
    return bool(value) and all(isinstance(part, Mapping) and {"role", "content"} <= set(part) for part in value)


def _text_of_chat(messages: Sequence[Mapping[str, Any]]) -> str:
    """Return the messages of a chat joined by line ends, without system messages."""
    contents = [message["content"] for message in messages if message["role"] != "system"]
    if not contents or not all(isinstance(content, str) for content in contents):
        raise NoTextError(f"got {list(messages)!r:.60}; each message has its text as content")
    return "\n".join(contents)


def _text_of_object(value: Mapping[str, Any]) -> str:
    """Return title and text of an object, joined by a space."""
    text = next((value[key] for key in TEXT_KEYS if value.get(key) is not None), None)
    title = value.get("title") or ""
    if not isinstance(text, str) or not isinstance(title, str):
        raise NoTextError(f"got {dict(value)!r:.60}; an object has title and text, else {NESTED}")
    return f"{title} {text}".strip()
