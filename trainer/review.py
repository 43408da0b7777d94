"""Suspected labels, judged by a person in the terminal: one pair a screen, y, n or skip.

Every answer is on disk before the next question, in a file beside the stages, so that a review can be left at any
time, goes on where it was left, and outlives the mining that asked. The file is what `data.judgements` reads.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainer import console
from trainer.errors import RunError

ANSWERS = {"y": True, "n": False, "s": None}  # a skipped pair is not asked again
Ask = Callable[[], str]  # one key: y, n, s or q


def review(suspects: Path, judgements: Path, ask: Ask) -> int:
    """Ask about every suspect that has no answer in `judgements` yet; returns how many answers were given.

    Raises RunError where there is nothing to review.
    """
    if not suspects.is_file():
        raise RunError(f"review: {suspects} is not there; run `reranker mine` with this recipe first")
    lines = _lines(suspects)
    answered = {_pair(line) for line in _lines(judgements)} if judgements.is_file() else set()
    open_lines = [line for line in lines if _pair(line) not in answered]
    given = 0
    with judgements.open("a", encoding="utf-8") as file:
        for number, line in enumerate(open_lines, start=len(lines) - len(open_lines) + 1):
            _show(line, f"{number} of {len(lines)}")
            key = ask()
            if key == "q":
                break
            kept = {name: line[name] for name in ("query_id", "document_id")} | {"relevant": ANSWERS[key]}
            file.write(json.dumps(kept, ensure_ascii=False) + "\n")
            file.flush()
            given += 1
    left = len(open_lines) - given
    console.stage("review", f"{given} answers in {judgements}; {left} of {len(lines)} pairs are open")
    return given


def _lines(path: Path) -> list[dict[str, Any]]:
    """All lines; a last one that was cut off by a kill is taken out of the file."""
    content = path.read_text(encoding="utf-8")
    whole = content[: content.rfind("\n") + 1]
    if whole != content:
        path.write_text(whole, encoding="utf-8")
    return [json.loads(line) for line in whole.splitlines()]


def _pair(line: dict[str, Any]) -> tuple[str, str]:
    return line["query_id"], line["document_id"]


def _show(line: dict[str, Any], progress: str) -> None:
    texts = {"query": "query", "judged relevant": "positive", "relevant too?": "document"}
    console.card(f"{progress}: {line['why']}", {label: line[name] for label, name in texts.items()})
