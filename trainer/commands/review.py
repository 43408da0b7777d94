"""Review of likely false negatives in the terminal: a person labels one pair at a time with yes, no or skip.

Every answer is on disk before the next question, in a file outside of the stages' folders. So a review can be stopped
at any time and resumed, and is kept when mining runs again. The recipe's `data.judgements` reads the file.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from trainer.commands.label_files import Pair, pair_of
from trainer.data import Faults
from trainer.data.lines import read_lines
from trainer.errors import RunError
from trainer.mining.likely_false_negatives import FILE
from trainer.runtime import console
from trainer.runtime.lock import hold

KEYS = {"y": "relevant", "n": "not", "s": "skip", "u": "undo the last", "q": "leave"}
ANSWERS = {"y": True, "n": False, "s": None}  # a skipped pair is not asked again
LONGEST = 1200  # characters of a text on the screen
Ask = Callable[[], str]  # one of KEYS
Line = dict[str, Any]


def review(pairs_file: Path, judgements: Path, ask: Ask) -> int:
    """Ask about every pair in `pairs_file` without an answer in `judgements`, and return the number of new answers.

    Raises RunError if there is no list to review or another review is running, and DataError with all lines that cannot
    be read.
    """
    require_mined(pairs_file)
    with locked(judgements):
        return _ask_about(pairs_file, judgements, ask)


def require_mined(pairs_file: Path) -> None:
    """Raise RunError if there is no list of likely false negatives."""
    if not pairs_file.is_file():
        raise RunError(
            f"review: {pairs_file} is not there; mine first: reranker run RECIPE --until mine, or train RECIPE"
        )


def locked(judgements: Path) -> AbstractContextManager[None]:
    """Lock the file of judgements; raises RunError if another review holds the lock."""
    return hold(judgements.with_name(".review.lock"), "review")


def pairs_file_of(run: Path, rounds: int) -> Path:
    """Return the path of the likely false negatives that the last of `rounds` mining rounds writes."""
    return run / ("mine-2" if rounds == 2 else "mine") / FILE


def newest_pairs_file(run: Path) -> Path:
    """Return the path of the newest list of likely false negatives, the first round's if there is none."""
    written = [path for rounds in (1, 2) if (path := pairs_file_of(run, rounds)).is_file()]
    return max(written, key=lambda path: path.stat().st_mtime_ns, default=pairs_file_of(run, 1))


def _ask_about(pairs_file: Path, judgements: Path, ask: Ask) -> int:
    lines = {pair_of(line): line for line in pairs_in(pairs_file)}
    answers = _Answers(judgements)
    open_pairs = deque(pair for pair in lines if pair not in answers.pairs)
    given = 0
    while open_pairs:
        pair = open_pairs[0]
        _show(lines[pair], f"{len(lines) - len(open_pairs) + 1} of {len(lines)}")
        key = ask()
        if key == "q":
            break
        if key == "u":
            if (last := answers.take_back(lines)) is None:
                console.warn("review", f"the last line of {judgements} is for another list")
            else:
                open_pairs.appendleft(last)
                given -= 1
        else:
            answers.add(pair, ANSWERS[key])
            open_pairs.popleft()
            given += 1
    console.stage("review", f"{given} answers in {judgements}; {len(open_pairs)} of {len(lines)} pairs are open")
    return given


class _Answers:
    """The file of judgements: lines are appended, and only the last line is ever removed.

    People edit it too, so its last line may lack a line end. A last line that is not JSON was truncated by an
    interruption; it is removed with a warning.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.open("ab").close()  # fails before the first question if the file cannot be written
        self._end_the_last_line()
        self.pairs = [pair_of(line) for line in answers_in(path)]

    def _end_the_last_line(self) -> None:
        content = self.path.read_bytes()
        start = content.rfind(b"\n") + 1
        if not (last := content[start:]).strip():
            return
        try:
            json.loads(last.decode("utf-8-sig"))
        except ValueError:
            cut = last.decode(errors="replace")
            console.warn("review", f"{self.path}: the last line was cut off and is removed: {cut[:100]}")
            self._shorten(start)
        else:
            with self.path.open("ab") as file:
                file.write(b"\n")

    def _shorten(self, size: int) -> None:
        with self.path.open("r+b") as file:
            file.truncate(size)

    def add(self, pair: Pair, relevant: bool | None) -> None:
        """Append one answer."""
        line = dict(zip(("query_id", "document_id"), pair, strict=True)) | {"relevant": relevant}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
        self.pairs.append(pair)

    def take_back(self, asked: dict[Pair, Line]) -> Pair | None:
        """Remove the last answer and return its pair; return None if it is not for one of the pairs in `asked`."""
        if not self.pairs or self.pairs[-1] not in asked:
            return None
        pair = self.pairs.pop()
        self._shorten(self.path.read_bytes().rstrip().rfind(b"\n") + 1)
        return pair


def pairs_in(pairs_file: Path) -> list[Line]:
    """Return the lines of the likely false negatives."""
    return _lines_of(pairs_file, "delete it and mine again")


def answers_in(judgements: Path) -> list[Line]:
    """Return the lines of the answers; none if there is no file."""
    return _lines_of(judgements, "correct or remove the line") if judgements.is_file() else []


def _lines_of(path: Path, advice: str) -> list[Line]:
    """Return the JSON lines, each with a query id and a document id; raises DataError that lists all invalid lines."""
    faults, lines = Faults(), []
    for number, text in read_lines(path, faults):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            line = None
        if isinstance(line, dict) and {"query_id", "document_id"} <= set(line):
            lines.append(line)
        else:
            message = f"an object with query_id and document_id is expected, got {text.strip()[:60]!r}; {advice}"
            faults.add("broken lines", f"{path}:{number}", message)
    faults.stop()
    return lines


def _show(line: Line, progress: str) -> None:
    texts = {"query": "query", "judged relevant": "positive", "relevant too?": "document"}
    shown = {label: shortened(str(line.get(name, ""))) for label, name in texts.items()}
    console.card(f"{progress}: {line.get('why', '')}", shown)


def shortened(text: str) -> str:
    """Return the text; a long one is truncated, with the number of characters left out."""
    text = " ".join(text.split())
    if len(text) <= LONGEST:
        return text
    head = text[:LONGEST]
    head = head[: head.rfind(" ")] if " " in head[LONGEST // 2 :] else head
    rest = text[len(head) :]
    left_out = f"{len(rest.split()):,} more words" if " " in rest.strip() else f"{len(rest):,} more characters"
    return f"{head} ... ({left_out})"
