"""Files in which people label pairs outside of this program: CSV for spreadsheets, JSON lines, JSON for Label Studio.

A spreadsheet calculates a cell that begins with = + - or @ as a formula, which a document's text may contain by chance
or by intent. Such a cell is written with an apostrophe before it, which is removed again when the file is read. Because
spreadsheets also change ids (007 to 7, 1-2 to a date), each row has a key of its pair that they leave unchanged.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from trainer.data import Faults
from trainer.data.lines import read_lines
from trainer.data.reader import parse_grade
from trainer.data.tables import COLUMNS, FileTable, ending
from trainer.errors import RunError

Pair = tuple[str, str]  # ids of query and document
SHOWN = ("query", "positive", "document")  # the texts that a person reads
FIRST = ("relevant", *SHOWN, "why", "query_id", "document_id", "pair")  # columns, the one to fill in first
FORMATS = (".csv", ".jsonl", ".json")
WORDS = {
    **dict.fromkeys(("relevant", "yes", "y", "true"), True),
    **dict.fromkeys(("not relevant", "not", "irrelevant", "no", "n", "false"), False),
}
_FORMULA = re.compile(r"'*[=+\-@\t\r＝＋－＠]")  # after any apostrophes, so that removing one undoes adding one
_ESCAPED = re.compile(r"'+[=+\-@\t\r＝＋－＠]")
BYTE_ORDER_MARK = "\ufeff"  # without it Excel reads UTF-8 as the encoding of the country


class Label(NamedTuple):
    """One row of a file: its location, its pair, and true, false, a grade, or None where nobody has judged it."""

    location: str
    pair: Pair
    relevant: bool | int | None


def write(lines: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write the lines of likely false negatives in the format of the file's ending; raises RunError for another one."""
    require_format(path)
    text = {".csv": _csv, ".jsonl": _json_lines, ".json": _tasks}[ending(path)](lines)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode("utf-8"))


def require_format(path: Path, formats: Sequence[str] = FORMATS) -> None:
    """Raise RunError unless the file's ending is one of a format."""
    if path.suffix.lower() not in formats:
        raise RunError(
            f"{path}: the ending chooses the format: .csv for a spreadsheet (saved as CSV in UTF-8), .jsonl for JSON "
            "lines, .json for Label Studio"
        )


def _csv(lines: Sequence[Mapping[str, Any]]) -> str:
    file = io.StringIO(newline="")
    rows = csv.writer(file)  # quotes and CRLF as Excel writes them
    rows.writerow(FIRST)
    for line in lines:
        cells = {**line, "pair": key_of(pair_of(line)), "relevant": ""}
        rows.writerow([escaped(str(cells.get(name) or "")) for name in FIRST])
    return BYTE_ORDER_MARK + file.getvalue()


def _json_lines(lines: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps({**line, "relevant": None}, ensure_ascii=False) + "\n" for line in lines)


def _tasks(lines: Sequence[Mapping[str, Any]]) -> str:
    """Return a JSON list of tasks in the format that Label Studio imports."""
    names = [name for name in FIRST if name not in ("relevant", "pair")]
    return json.dumps([{"data": {name: line.get(name) for name in names}} for line in lines], ensure_ascii=False)


def escaped(text: str) -> str:
    """Return the text for a spreadsheet's cell, with an apostrophe before what would be a formula."""
    return f"'{text}" if _FORMULA.match(text) else text


def restored(text: str) -> str:
    """Return the text of a cell without the apostrophe that `escaped` adds."""
    return text[1:] if _ESCAPED.match(text) else text


def pair_of(line: Mapping[str, Any]) -> Pair:
    """Return the ids of a line."""
    return str(line["query_id"]).strip(), str(line["document_id"]).strip()


def key_of(pair: Pair) -> str:
    """Return a short key of a pair that no spreadsheet takes for a number or a date."""
    return "p" + hashlib.sha256(json.dumps(pair).encode()).hexdigest()[:12]


def read(path: Path, faults: Faults) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield (location, row) of a labelled file; a row has at least query_id, document_id and relevant."""
    if ending(path) != ".json":
        yield from _read_table(path, faults)
        return
    text = "".join(line for _, line in read_lines(path, faults))
    try:
        tasks = json.loads(text)
    except (ValueError, RecursionError):
        tasks = None
    if not isinstance(tasks, list):
        message = "a JSON list of tasks is expected, as Label Studio exports it (JSON or JSON-MIN)"
        faults.add("broken JSON", str(path), message)
        return
    for number, task in enumerate(tasks, start=1):
        yield from _read_task(f"{path}: task {number}", task, faults)


def _read_table(path: Path, faults: Faults) -> Iterator[tuple[str, Mapping[str, Any]]]:
    table = FileTable(path)

    def choose(columns: Sequence[str]) -> Sequence[str] | None:
        if missing := [name for name in ("query_id", "document_id", "relevant") if name not in columns]:
            message = f"needs the columns query_id, document_id and relevant; {', '.join(missing)} missing"
            faults.add(COLUMNS, table.name, f"{message}, columns here: {', '.join(columns)}")
            return None
        return columns

    is_sheet = ending(path) in (".csv", ".tsv")
    for number, row in table.rows(choose, faults):
        if not {"query_id", "document_id"} <= set(row):  # a JSON line with other keys than the first one
            faults.add("broken lines", table.location(number), "needs the keys query_id and document_id")
            continue
        cells = {name: restored(cell) if is_sheet and isinstance(cell, str) else cell for name, cell in row.items()}
        yield table.location(number), cells


def _read_task(location: str, task: Any, faults: Faults) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield a row for each annotation of a task, or one without a label; JSON-MIN has its data in the task itself."""
    task = task if isinstance(task, dict) else {}
    data = task.get("data", task)
    if not isinstance(data, dict) or not {"query_id", "document_id"} <= set(data):
        faults.add("broken tasks", location, "has no query_id and document_id in its data; export the project again")
        return
    values = _annotated(task["annotations"]) if "annotations" in task else [data.get("relevant")]
    for value in values or [None]:
        yield location, {**data, "relevant": _choice(value)}


def _annotated(annotations: Any) -> list[Any]:
    """Return the values of the control `relevant` in all annotations that were not cancelled."""
    given = [one for one in annotations or [] if isinstance(one, dict) and not one.get("was_cancelled")]
    results = [result for one in given for result in one.get("result") or [] if isinstance(result, dict)]
    return [result.get("value") for result in results if result.get("from_name") == "relevant"]


def _choice(value: Any) -> Any:
    """Return the value of a control of Label Studio: choices, a rating or a number."""
    if isinstance(value, dict):
        value = next((value[name] for name in ("choices", "rating", "number") if name in value), None)
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def labels(
    rows: Iterable[tuple[str, Mapping[str, Any]]],
    keys: Mapping[str, Pair],
    unknown: Callable[[Pair], str],
    faults: Faults,
) -> Iterator[Label]:
    """Yield the labels of rows; rows with unknown ids or values that are no labels are added to `faults`.

    `keys` are the pairs of the exported list by their keys: a row whose ids a spreadsheet changed is recognised by its
    key. `unknown` returns the problem of a pair that is not in the collection, else an empty string. Rows without a
    label may have any ids.
    """
    for location, row in rows:
        try:
            relevant = _grade(row.get("relevant"))
        except ValueError as error:
            faults.add("broken labels", location, str(error))
            continue
        pair, meant = pair_of(row), keys.get(str(row.get("pair") or ""))
        problem = "" if relevant is None else unknown(pair)
        if relevant is not None and meant not in (None, pair) and not problem:
            message = f"the ids {pair} and the key {row['pair']!r} are of two pairs; was a single column sorted?"
            faults.add("rows that are mixed up", location, message)
        elif problem and meant is None:
            faults.add("unknown ids", location, problem)
        else:
            yield Label(location, meant or pair, relevant)


def _grade(value: Any) -> bool | int | None:
    """Return a label as true, false, a grade or None; raises ValueError for other values."""
    if value is None or isinstance(value, bool):
        return value
    text = " ".join(str(value).split()).lower()
    if not text:
        return None
    if text in WORDS:
        return WORDS[text]
    grade = parse_grade(text if isinstance(value, str) else value)
    if grade is None:
        raise ValueError(f'"relevant" is {", ".join(WORDS)}, a grade, or empty, got {str(value)[:60]!r}')
    return grade
