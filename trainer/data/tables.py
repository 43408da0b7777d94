"""Files to rows: JSON lines, CSV, TSV, Parquet and TREC qrels are read as a number and named values per row.

Fields that are separated by tabs have no quoting (a quotation mark is literal) unless the file's ending is .csv; others
are read strictly, with quotes that may contain line ends. The separator is detected from the header unless the recipe
names it. The header may be missing if the first row cannot be one: in judgements, and if the ids are numbers. Parquet
is streamed, and only the chosen columns are read.
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
Headerless = Callable[[Sequence[str]], Sequence[str]]
QRELS_COLUMNS = ("query-id", "corpus-id", "score")
TREC_COLUMNS = ("query-id", "iteration", "corpus-id", "score")
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
_WHOLE_NUMBER = re.compile(r"-?[0-9]+(\.0+)?")
_EXCEL_HINT = re.compile(r"\ufeff?sep=(.)\r?\n?")
COLUMNS = "columns"  # the kind of problem that makes a complete file unreadable
ROWS_AT_ONCE = 1024  # of a Parquet file


class Table(Protocol):
    """A source of numbered rows: a file or a split of a data set."""

    @property
    def name(self) -> str:
        """Name in messages."""
        ...

    def location(self, number: int) -> str:
        """Return the location of a row for messages, e.g. file:line."""
        ...

    def rows(self, choose: Choose, faults: Faults) -> Rows:
        """Yield numbered rows; `choose` is called with all columns before the first row and returns the wanted ones.

        For JSON lines the columns are the keys of the first object. If `choose` returns None, because columns are
        missing, nothing is read.
        """
        ...


def qrels_columns(row: Sequence[str]) -> Sequence[str]:
    """Return the columns of judgements without a header, empty unless the first row ends with a grade."""
    cells = [cell.strip() for cell in row]
    if not cells or not _WHOLE_NUMBER.fullmatch(cells[-1]):
        return ()
    if len(cells) == 4 and (cells[1].isdigit() or cells[1] == "Q0"):
        return TREC_COLUMNS
    return QRELS_COLUMNS if len(cells) == 3 else ()


def record_columns(row: Sequence[str]) -> Sequence[str]:
    """Return the columns of documents or queries without a header (as MS MARCO's), empty unless the id is a number.

    No column is named by a number, so such a row is data; files with other ids need a header.
    """
    if not row or not row[0].strip().isdigit():
        return ()
    return {2: ("id", "text"), 3: ("id", "title", "text")}.get(len(row), ())


def with_header(row: Sequence[str]) -> Sequence[str]:
    """Return no columns: the first row is always the header."""
    del row
    return ()


@dataclass(frozen=True)
class FileTable:
    """One file; `headerless` returns the columns of a CSV or TSV file whose first row is not a header."""

    path: Path
    headerless: Headerless = with_header
    separator: str | None = None

    @property
    def name(self) -> str:
        """Path as it was given."""
        return str(self.path)

    @cached_property
    def _before(self) -> str:
        return f"{self.path}: row " if ending(self.path) == ".parquet" else f"{self.path}:"

    def location(self, number: int) -> str:
        """Return file:line, or file and row number for Parquet."""
        return f"{self._before}{number}"

    def rows(self, choose: Choose, faults: Faults) -> Rows:
        """Yield numbered rows."""
        return READERS[ending(self.path)](self, choose, faults)


def ending(path: Path) -> str:
    """Return the ending of the file's format, without that of its compression."""
    return Path(unpacked(path.name)).suffix.lower()


def _json_lines(table: FileTable, choose: Choose, faults: Faults) -> Rows:
    first, chosen = True, False
    for number, line in read_lines(table.path, faults):
        if not line.strip():
            continue
        if first and (problem := _why_not_json_lines(table.path, line)):
            faults.add(COLUMNS, table.location(number), problem)
            return
        first = False
        row = _json_object(line, table.location(number), faults)
        if row is None:
            continue
        if not chosen and choose(list(row)) is None:
            return
        chosen = True
        yield number, row


def _why_not_json_lines(path: Path, line: str) -> str:
    """Return a message if a file is JSON, but not one object per line; else an empty string."""
    given, converted = shlex.quote(str(path)), shlex.quote(str(path.with_suffix(".jsonl").name))
    if line.lstrip().startswith("["):
        return f"a JSON array; one object per line is expected; convert it: jq -c '.[]' {given} > {converted}"
    if line.strip() == "{":
        return f"an object over several lines; one per line is expected; convert it: jq -c . {given} > {converted}"
    return ""


def _json_object(line: str, location: str, faults: Faults) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        reason = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else error
        faults.add("broken JSON", location, f"not valid JSON ({reason}): {line[:60]!r}")
        return None
    if not isinstance(row, dict):
        faults.add("broken JSON", location, f"a JSON object is expected, got {line[:60]!r}")
        return None
    return row


class _Feed:
    """Lines for the csv module, with the number of the line on which a row begins."""

    def __init__(self, lines: Iterator[tuple[int, str]]) -> None:
        self.lines = lines
        self.first = 0

    def __iter__(self) -> _Feed:
        return self

    def __next__(self) -> str:
        number, line = next(self.lines)
        self.first = self.first or number
        return line


def _delimited(table: FileTable, choose: Choose, faults: Faults) -> Rows:
    """Yield rows of CSV with quotes or TSV without; the first line is the header, unless it is data."""
    lines = read_lines(table.path, faults)
    mark, lines = _separator(table, lines)
    names: Sequence[str] = ()
    for number, row in _fields(table, mark, lines, faults):
        if not names:
            headerless = table.headerless(row)
            names = headerless or [name.strip() for name in row]
            if choose(names) is None:
                return
            if not headerless:
                continue
        if len(row) == len(names):
            yield number, dict(zip(names, row, strict=True))
        else:
            between = SEPARATORS.get(mark, "blanks" if mark == " " else repr(mark))
            message = f"expected {len(names)} fields with {between} between ({', '.join(names)}), got {len(row)}: "
            faults.add("broken lines", table.location(number), f"{message}{mark.join(row)[:60]!r}")


def _separator(table: FileTable, lines: Iterator[tuple[int, str]]) -> tuple[str, Iterator[tuple[int, str]]]:
    """Return the field separator, and the lines from the header on.

    The separator is the recipe's, else Excel's hint (a first line `sep=;`), else the usual one of the file's ending if
    it gives several fields, else the one that gives the most fields.
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
    if fields[best] == 1 and table.headerless is qrels_columns and len(first.split()) in (3, 4):
        return " ", lines
    return best if fields[best] > 1 else own, lines


def _fields(
    table: FileTable, mark: str, lines: Iterator[tuple[int, str]], faults: Faults
) -> Iterator[tuple[int, list[str]]]:
    """Yield rows with the number of their first line; a broken quote ends the file, since later rows are unreliable."""
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
            reason = "a carriage return is inside a line" if "new-line character" in reason else reason
            message = f"not valid in the row that begins here: {reason}; correct the quotes, nothing after it was read"
            faults.add(UNREADABLE, table.location(feed.first), message)
            return
        if row and (len(row) > 1 or row[0].strip()):
            yield feed.first, row


def trec_fields(line: str, count: int) -> list[str]:
    """Split a line of TREC qrels or of a run at white space, or at tabs if ids contain blanks."""
    fields = [field.strip() for field in line.split("\t")]
    return fields if len(fields) == count else line.split()


def _trec(table: FileTable, choose: Choose, faults: Faults) -> Rows:
    if choose(QRELS_COLUMNS) is None:
        return
    for number, line in read_lines(table.path, faults):
        fields = trec_fields(line, 4)
        if fields and len(fields) != 4:
            message = f"expected query id, 0, document id and grade (TREC qrels), got {line.strip()[:60]!r}"
            faults.add("broken lines", table.location(number), message)
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
        message = f"not readable as Parquet ({one_line(error)[:120]}); download or write the file again"
        faults.add(UNREADABLE, table.location(number) if number else table.name, message)


READERS: dict[str, Callable[[FileTable, Choose, Faults], Rows]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json_lines,
    ".csv": _delimited,
    ".tsv": _delimited,
    ".parquet": _parquet,
    ".qrels": _trec,
    ".trec": _trec,
    ".txt": _trec,
}
