"""Files to rows: JSON lines, CSV, TSV, Parquet and TREC qrels give the same thing, a number and named values.

A TSV file has no quotes (a quotation mark is a quotation mark); a CSV file is read strictly, with quotes and line ends
inside them. Parquet is streamed, and only the columns that are asked for are read.
"""

from __future__ import annotations

import csv
import json
import shlex
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from trainer.data.faults import Faults
from trainer.data.lines import UNREADABLE, read_lines
from trainer.errors import one_line

Rows = Iterator[tuple[int, Mapping[str, Any]]]
Choose = Callable[[Sequence[str]], Collection[str] | None]
QRELS_COLUMNS = ("query-id", "corpus-id", "score")
COLUMNS = "columns"  # kind of the faults that make a whole file unreadable
ROWS_AT_ONCE = 1024  # of a Parquet file


class Table(Protocol):
    """Rows from somewhere."""

    @property
    def name(self) -> str:
        """What faults call it."""
        ...

    def place(self, number: int) -> str:
        """Where a row stands, as faults say it."""
        ...

    def rows(self, choose: Choose, faults: Faults) -> Rows:
        """Numbered rows. `choose` is called with all columns before the first row and names those that are wanted.

        For JSON lines the columns are the keys of the first object. If `choose` finds a fault it returns None, and
        nothing is read.
        """
        ...


@dataclass(frozen=True)
class FileTable:
    """One file; `headless` names the columns where a CSV or TSV file may lack its head line."""

    path: Path
    headless: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The path as it was given."""
        return str(self.path)

    @cached_property
    def _before(self) -> str:
        return f"{self.path}: row " if ending(self.path) == ".parquet" else f"{self.path}:"

    def place(self, number: int) -> str:
        """file:line, or the row in a Parquet file, which has no lines."""
        return f"{self._before}{number}"

    def rows(self, choose: Choose, faults: Faults) -> Rows:
        """Numbered rows."""
        return READERS[ending(self.path)](self, choose, faults)


def ending(path: Path) -> str:
    """What tells the format: the last ending that is not .gz."""
    return Path(path.name.removesuffix(".gz")).suffix.lower()


def _json_lines(table: FileTable, choose: Choose, faults: Faults) -> Rows:
    first, chosen = True, False
    for number, line in read_lines(table.path, faults):
        if not line.strip():
            continue
        if first and (fault := _one_value_over_all_lines(table.path, line)):
            faults.add(COLUMNS, table.place(number), fault)
            return
        first = False
        row = _json_object(line, table.place(number), faults)
        if row is None:
            continue
        if not chosen and choose(list(row)) is None:
            return
        chosen = True
        yield number, row


def _one_value_over_all_lines(path: Path, line: str) -> str:
    """What to do about a file that is JSON, but not one object a line; empty where it is."""
    given, mended = shlex.quote(str(path)), shlex.quote(str(path.with_suffix(".jsonl").name))
    if line.lstrip().startswith("["):
        return f"a JSON array; one object a line is expected; convert it: jq -c '.[]' {given} > {mended}"
    if line.strip() == "{":
        return f"an object over several lines; one object a line is expected; convert it: jq -c . {given} > {mended}"
    return ""


def _json_object(line: str, place: str, faults: Faults) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        reason = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else error
        faults.add("broken JSON", place, f"not valid JSON ({reason}): {line[:60]!r}")
        return None
    if not isinstance(row, dict):
        faults.add("broken JSON", place, f"a JSON object is expected, got {line[:60]!r}")
        return None
    return row


class _Feed:
    """Lines for the csv module, which remembers on which line of the file a row begins."""

    def __init__(self, lines: Iterator[tuple[int, str]]) -> None:
        self.lines = lines
        self.first = 0

    def __iter__(self) -> _Feed:
        return self

    def __next__(self) -> str:
        number, line = next(self.lines)
        self.first = self.first or number
        return line


def _separated(table: FileTable, choose: Choose, faults: Faults) -> Rows:
    """CSV with quotes, TSV without; the first line names the columns, unless it is a judgement already."""
    mark, between = ("\t", "tabs") if ending(table.path) == ".tsv" else (",", "commas")
    names: Sequence[str] = ()
    for number, row in _fields(table, mark, faults):
        if not names:
            headless = _is_judgement(row, table.headless)
            names = table.headless if headless else [name.strip() for name in row]
            if _is_trec(row, table, number, faults) or choose(names) is None:
                return
            if not headless:
                continue
        if len(row) == len(names):
            yield number, dict(zip(names, row, strict=True))
        else:
            message = f"expected {len(names)} fields with {between} between ({', '.join(names)}), got {len(row)}: "
            faults.add("broken lines", table.place(number), f"{message}{mark.join(row)[:60]!r}")


def _fields(table: FileTable, mark: str, faults: Faults) -> Iterator[tuple[int, list[str]]]:
    """Rows with the line on which they begin; after a broken quote nothing can be trusted, so it ends the file."""
    csv.field_size_limit(2**31 - 1)  # the default, 131,072 characters, is less than a long document
    feed = _Feed(read_lines(table.path, faults))
    quoting = csv.QUOTE_NONE if mark == "\t" else csv.QUOTE_MINIMAL
    rows = csv.reader(feed, delimiter=mark, quoting=quoting, strict=True)
    while True:
        feed.first = 0
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            reason = "a quote is opened and never closed" if "end of data" in str(error) else error
            message = f"not valid in the row that begins here: {reason}; mend the quotes, nothing behind it was read"
            faults.add(UNREADABLE, table.place(feed.first), message)
            return
        if row and (len(row) > 1 or row[0].strip()):
            yield feed.first, row


def _is_judgement(row: Sequence[str], headless: Sequence[str]) -> bool:
    """Whether the first line of a file that may lack its head is one of its rows: it ends with a grade."""
    return len(row) == len(headless) and row[-1].strip().replace(".", "", 1).isdigit()


def _is_trec(row: Sequence[str], table: FileTable, number: int, faults: Faults) -> bool:
    found = bool(table.headless) and len(row) == 4 and row[-1].strip().isdigit()
    if found:
        message = "looks like TREC qrels (query, 0, document, grade); name the file .qrels"
        faults.add(COLUMNS, table.place(number), message)
    return found


def _trec(table: FileTable, choose: Choose, faults: Faults) -> Rows:
    if choose(QRELS_COLUMNS) is None:
        return
    for number, line in read_lines(table.path, faults):
        fields = line.split()
        if fields and len(fields) != 4:
            message = f"expected query id, 0, document id and grade (TREC qrels), got {line.strip()[:60]!r}"
            faults.add("broken lines", table.place(number), message)
        elif fields:
            yield number, dict(zip(QRELS_COLUMNS, (fields[0], *fields[2:]), strict=True))


def _parquet(table: FileTable, choose: Choose, faults: Faults) -> Rows:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    number = 0
    try:
        with ParquetFile(table.path) as file:
            names = file.schema_arrow.names
            wanted = choose(names)
            if wanted is None:
                return
            for batch in file.iter_batches(ROWS_AT_ONCE, columns=[name for name in names if name in wanted]):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        message = f"not readable as Parquet ({one_line(error)[:120]}); get or write the file again"
        faults.add(UNREADABLE, table.place(number) if number else table.name, message)


READERS: dict[str, Callable[[FileTable, Choose, Faults], Rows]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json_lines,
    ".csv": _separated,
    ".tsv": _separated,
    ".parquet": _parquet,
    ".qrels": _trec,
    ".trec": _trec,
    ".txt": _trec,
}
