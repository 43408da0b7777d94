"""Answers of endpoints by the content of the request, in an append-only file that survives a kill at any moment.

Each answer is one line, written in one call before the next request is sent. A line that a kill cut off is ignored, and
only its request is sent again. Several runs may append to the file at the same time.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

from trainer.recipe import CHAT
from trainer.runtime.machine import ENDPOINTS


class Answer(NamedTuple):
    """The text of an answer, the reason why it ended (stop, length ...), its tokens, and the seconds that it took.

    `chances` are the probabilities of the digits that the model could have answered with, None if it gave none.
    """

    text: str
    ending: str
    input_tokens: int
    output_tokens: int
    seconds: float
    chances: dict[str, float] | None = None


class Store:
    """The answers in a file, by the key of the request; several threads may use it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = Lock()
        self.answers: dict[str, Answer] = {}
        for key, answer in _read(path):
            self.answers.setdefault(key, answer)

    def add(self, answers: Mapping[str, Answer]) -> None:
        """Write answers to the file in one call; a second one for the same key is ignored."""
        with self._lock:
            new = {key: answer for key, answer in answers.items() if key not in self.answers}
            if not new:
                return
            text = "".join(map(_line, new, new.values()))
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab", buffering=0) as file:
                if file.tell() and not _ends_with_newline(self._path):  # a kill has cut the last line off
                    text = "\n" + text
                written = file.write(text.encode())
                if written != len(text):
                    raise OSError(28, os.strerror(28), str(self._path))
                os.fsync(file.fileno())
            self.answers |= new


def _line(key: str, answer: Answer) -> str:
    """Return the line of an answer, in ASCII, so that no text can end it."""
    content = answer._asdict()
    if answer.chances is None:
        del content["chances"]
    return json.dumps({"key": key, **content}) + "\n"


def store_of(runs: Path, kind: str = CHAT) -> Store:
    """Return the answers of endpoints of one kind, which all runs in a folder share."""
    return Store(runs / ENDPOINTS / f"{kind.rstrip(':')}.jsonl")


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
    kinds |= {"chances": dict} if "chances" in content else {}
    whole = content.keys() == kinds.keys() and all(isinstance(content[name], kind) for name, kind in kinds.items())
    return whole and all(
        isinstance(chance, float) and 0 <= chance <= 1 for chance in content.get("chances", {}).values()
    )
