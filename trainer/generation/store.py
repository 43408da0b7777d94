"""Answers of endpoints by the content of the request, in an append-only file that survives a kill at any moment.

Each answer is one line, written in one call before the next request is sent. A line that a kill cut off is ignored, and
only its request is sent again. Several runs may append to the file at the same time.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple


class Answer(NamedTuple):
    """The text of an answer, the reason why it ended (stop, length ...), its tokens, and the seconds that it took."""

    text: str
    ending: str
    input_tokens: int
    output_tokens: int
    seconds: float


class Store:
    """The answers in a file, by the key of the request; several threads may use it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = Lock()
        self.answers: dict[str, Answer] = {}
        for key, answer in _read(path):
            self.answers.setdefault(key, answer)

    def add(self, key: str, answer: Answer) -> None:
        """Write an answer to the file; a second one for the same request is ignored."""
        line = json.dumps({"key": key, **answer._asdict()}) + "\n"  # in ASCII, so a text cannot end the line
        with self._lock:
            if key in self.answers:
                return
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab", buffering=0) as file:
                if file.tell() and not _ends_with_newline(self._path):  # a kill has cut the last line off
                    line = "\n" + line
                written = file.write(line.encode())
                if written != len(line):
                    raise OSError(28, os.strerror(28), str(self._path))
                os.fsync(file.fileno())
            self.answers[key] = answer


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def _read(path: Path) -> Iterator[tuple[str, Answer]]:
    """Yield the complete lines of the file."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        for line in file:
            try:
                content = json.loads(line)
            except ValueError:
                continue
            if isinstance(content, dict) and isinstance(key := content.pop("key", None), str) and _is_answer(content):
                yield key, Answer(**content)


def _is_answer(content: dict[str, Any]) -> bool:
    kinds = {"text": str, "ending": str, "input_tokens": int, "output_tokens": int, "seconds": (int, float)}
    return content.keys() == kinds.keys() and all(isinstance(content[name], kind) for name, kind in kinds.items())
