"""Files to rows: JSON lines, CSV, TSV, Parquet and TREC qrels give the same thing, a number and named values.

What is separated by tabs has no quotes (a quotation mark is a quotation mark) unless its ending is .csv; all else is
read strictly, with quotes and line ends inside them. The separator is told from the head line where the recipe does not
name it. A head line may be missing where the first row can be no head line: in judgements, and where ids are numbers.
Parquet is streamed, and only the columns that are asked for are read.
"""

from __future__ import annotations

import csv
import json
import re
import shlex
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

from trainer.data.faults import Faults
from trainer.data.lines import UNREADABLE, read_lines, unpacked
from trainer.errors import one_line

Rows = Iterator[tuple[int, Mapping[str, Any]]]
Choose = Callable[[Sequence[str]], Collection[str] | None]
Headless = Callable[[Sequence[str]], Sequence[str]]
QRELS_COLUMNS = ("query-id", "corpus-id", "score")
TREC_COLUMNS = ("query-id", "iteration", "corpus-id", "score")
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_WHOLE_NUMBER = re.compile(r"-?[0-9]+(\.0+)?")
_EXCEL_HINT = re.compile(r"\ufeff?sep=(.)\r?\n?")
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


def qrels_columns(row: Sequence[str]) -> Sequence[str]:
    """Return the columns of judgements without a head line, empty unless the first row ends with a grade."""
    cells = [cell.strip() for cell in row]
    if not cells or not _WHOLE_NUMBER.fullmatch(cells[-1]):
        return ()
    if len(cells) == 4 and (cells[1].isdigit() or cells[1] == "Q0"):
        return TREC_COLUMNS
    return QRELS_COLUMNS if len(cells) == 3 else ()


def record_columns(row: Sequence[str]) -> Sequence[str]:
    """Return the columns of documents or queries without a head line (as MS MARCO's), empty unless an id is a number.

    Names of columns are no numbers, so that such a row is data; ids with letters need a head line.
    """
    if not row or not row[0].strip().isdigit():
        return ()
    return {2: ("id", "text"), 3: ("id", "title", "text")}.get(len(row), ())


def with_head_line(row: Sequence[str]) -> Sequence[str]:
    """Return no columns: the first row is a head line, whatever it looks like."""
    del row
    return ()


@dataclass(frozen=True)
class FileTable:
    """One file; `headless` names the columns of a CSV or TSV file by its first row where that is no head line."""

    path: Path
    headless: Headless = with_head_line
    separator: str | None = None

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
    """Return the ending that tells the format, which is the last one that does not say how the file is packed."""
    return Path(unpacked(path.name)).suffix.lower()


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
    """CSV with quotes, TSV without; the first line names the columns, unless it is data already."""
    lines = read_lines(table.path, faults)
    mark, lines = _separator(table, lines)
    names: Sequence[str] = ()
    for number, row in _fields(table, mark, lines, faults):
        if not names:
            headless = table.headless(row)
            names = headless or [name.strip() for name in row]
            if choose(names) is None:
                return
            if not headless:
                continue
        if len(row) == len(names):
            yield number, dict(zip(names, row, strict=True))
        else:
            between = SEPARATORS.get(mark, "blanks" if mark == " " else repr(mark))
            message = f"expected {len(names)} fields with {between} between ({', '.join(names)}), got {len(row)}: "
            faults.add("broken lines", table.place(number), f"{message}{mark.join(row)[:60]!r}")


def _separator(table: FileTable, lines: Iterator[tuple[int, str]]) -> tuple[str, Iterator[tuple[int, str]]]:
    """Return what separates the fields, and the lines from the head line on.

    The recipe's word counts first, then Excel's hint (a first line `sep=;`), then the usual separator of the ending if
    it separates anything, then the one that gives the most fields.
    """
    own = "\t" if ending(table.path) == ".tsv" else ","
    number, first = next(((number, line) for number, line in lines if line.strip()), (0, ""))
    if hint := _EXCEL_HINT.fullmatch(first):
        return table.separator or hint[1], lines
    lines = chain([(number, first)], lines) if number else lines
    if table.separator:
        return table.separator, lines
    fields = {mark: len(next(csv.reader([first], delimiter=mark), ())) for mark in SEPARATORS}
    if fields[own] > 1:
        return own, lines
    best = max(fields, key=lambda mark: fields[mark])
    if fields[best] == 1 and table.headless is qrels_columns and len(first.split()) in (3, 4):
        return " ", lines
    return best if fields[best] > 1 else own, lines


def _fields(
    table: FileTable, mark: str, lines: Iterator[tuple[int, str]], faults: Faults
) -> Iterator[tuple[int, list[str]]]:
    """Rows with the line on which they begin; after a broken quote nothing can be trusted, so it ends the file."""
    csv.field_size_limit(2**31 - 1)  # the default, 131,072 characters, is less than a long document
    feed = _Feed(lines)
    plain = mark == " " or mark == "\t" and ending(table.path) == ".tsv"
    quoting = csv.QUOTE_NONE if plain else csv.QUOTE_MINIMAL
    rows = csv.reader(feed, delimiter=mark, quoting=quoting, strict=True, skipinitialspace=mark == " ")
    while True:
        feed.first = 0
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            reason = "a quote is opened and never closed" if "end of data" in str(error) else one_line(error)
            reason = "a carriage return stands inside a line" if "new-line character" in reason else reason
            message = f"not valid in the row that begins here: {reason}; mend the quotes, nothing behind it was read"
            faults.add(UNREADABLE, table.place(feed.first), message)
            return
        if row and (len(row) > 1 or row[0].strip()):
            yield feed.first, row


def trec_fields(line: str, count: int) -> list[str]:
    """Split a line of TREC qrels or of a run at white space, or at tabs where ids hold blanks."""
    fields = [field.strip() for field in line.split("\t")]
    return fields if len(fields) == count else line.split()


def _trec(table: FileTable, choose: Choose, faults: Faults) -> Rows:
    if choose(QRELS_COLUMNS) is None:
        return
    for number, line in read_lines(table.path, faults):
        fields = trec_fields(line, 4)
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
