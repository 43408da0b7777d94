"""A collection from plain dicts: checked in the same way as files, and written in BEIR layout for a run."""

from __future__ import annotations

import json
import shutil
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from pydantic import ValidationError

from trainer.data.faults import Faults
from trainer.data.reader import Reader, parse_grade
from trainer.data.records import SPLITS
from trainer.data.sources import Sources
from trainer.data.tables import QRELS_COLUMNS, Choose, Rows
from trainer.errors import DataError, did_you_mean
from trainer.recipe import Data

RECORD_COLUMNS = ("_id", "title", "text")
SEPARATORS = "\t\n\r"  # of the columns and lines of qrels files
BROKEN_IDS = "ids with tabs or line ends"
SHAPES = {
    "documents": '{id: text} or {id: {"title": text, "text": text}}',
    "queries": "{id: text}",
    "qrels": "{query id: {document id: grade}}, or such a dict for each of train, dev and test",
}


class TemporaryFolder:
    """A folder that is deleted when the last reference to this object is gone."""

    def __init__(self) -> None:
        self.path = Path(mkdtemp(prefix="collection-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


@dataclass(frozen=True)
class DictTable:
    """The rows of one dict; `keys` has the keys that lead to each row, for messages."""

    name: str
    columns: tuple[str, ...]
    keys: list[tuple[Any, ...]]
    row: Callable[[tuple[Any, ...]], dict[str, Any]]

    def location(self, number: int) -> str:
        """Return the Python expression for a row, e.g. `documents['d1']`."""
        return self.name + "".join(f"[{key!r}]" for key in self.keys[number - 1])

    def rows(self, choose: Choose, faults: Faults) -> Rows:
        """Yield numbered rows."""
        if choose(self.columns) is None:
            return
        for number, keys in enumerate(self.keys, start=1):
            if len(keys) == 1 and any(separator in str(keys[0]) for separator in SEPARATORS):
                faults.add(BROKEN_IDS, self.location(number), "an id must not contain a tab or line end; rename it")
            yield number, self.row(keys)


def in_memory(
    documents: Mapping[Any, Any], queries: Mapping[Any, Any], qrels: Mapping[Any, Any], settings: Mapping[str, Any]
) -> Reader:
    """Return a reader of the dicts, whose section names the temporary folder of `write_beir`.

    `settings` are keys of a recipe's section `data`. The folder is deleted with the section. Raises DataError if an
    argument does not have the expected shape; problems inside the dicts are found when they are read.
    """
    given = {"documents": documents, "queries": queries, "qrels": qrels}
    faults = [
        f"{name}: must be a dict {SHAPES[name]}, not {type(value).__name__}"
        for name, value in given.items()
        if not isinstance(value, Mapping)
    ]
    if faults:
        raise DataError(faults)
    section = _section(settings)
    found = Faults()
    sources = Sources([_records("documents", documents)], [_records("queries", queries)], _judged(qrels, found))
    reader = Reader(sources, section)
    for kind, lines in found.kinds.items():
        reader.faults.kinds[kind] += lines
    return reader


def _section(settings: Mapping[str, Any]) -> Data:
    """Return a data section over an empty temporary folder, which is deleted with the section."""
    folder = TemporaryFolder()
    try:
        section = Data(path=folder.path / "collection", **settings)
    except (ValidationError, TypeError) as error:
        lines = error.errors() if isinstance(error, ValidationError) else []
        faults = [f"{'.'.join(map(str, line['loc'])) or 'settings'}: {_sentence(line)}" for line in lines]
        raise DataError(faults or [f"settings: {error}"]) from None
    section.keep(folder)
    return section


def _sentence(line: Any) -> str:
    if line["type"] == "extra_forbidden":
        return f"is not a key of the section data{did_you_mean(str(line['loc'][-1]), Data.model_fields)}"
    return line["msg"].removeprefix("Value error, ")


def _records(name: str, given: Mapping[Any, Any]) -> DictTable:
    """Return the table of documents or queries."""

    def row(keys: tuple[Any, ...]) -> dict[str, Any]:
        value = given[keys[0]]
        values = {str(key): text for key, text in value.items()} if isinstance(value, Mapping) else {"text": value}
        return {**values, "_id": _plain(keys[0])}

    return DictTable(name, RECORD_COLUMNS, [(key,) for key in given], row)


def _judged(qrels: Mapping[Any, Any], faults: Faults) -> dict[str, list[Any]]:
    """Return the table of each split; without splits all are train's, from which dev and test are split off."""
    if not _has_splits(qrels):
        return {"train": [_judgements("qrels", qrels, faults)]}
    tables: dict[str, list[Any]] = {}
    for split, judged in qrels.items():
        name = f"qrels[{split!r}]"
        if split not in SPLITS:
            faults.add("unknown splits", name, f"is not a split{did_you_mean(str(split), SPLITS)}")
        elif not isinstance(judged, Mapping):
            faults.add("broken judgements", name, f"must be {{query id: {{document id: grade}}}}, got {judged!r:.60}")
        else:
            tables[split] = [_judgements(name, judged, faults)]
    return tables


def _has_splits(qrels: Mapping[Any, Any]) -> bool:
    """Return whether the keys are splits: their values hold dicts of grades, and not grades."""
    inner = [grades for judged in qrels.values() if isinstance(judged, Mapping) for grades in judged.values()]
    return any(isinstance(grades, Mapping) for grades in inner) or (not inner and bool(qrels) and {*qrels} <= {*SPLITS})


def _judgements(name: str, judged: Mapping[Any, Any], faults: Faults) -> DictTable:
    keys: list[tuple[Any, ...]] = []
    for query, grades in judged.items():
        if isinstance(grades, Mapping):
            keys += [(query, document) for document in grades]
        else:
            faults.add("broken judgements", f"{name}[{query!r}]", f"must be {{document id: grade}}, got {grades!r:.60}")

    def row(keys: tuple[Any, ...]) -> dict[str, Any]:
        query, document = keys
        return dict(zip(QRELS_COLUMNS, map(_plain, (query, document, judged[query][document])), strict=True))

    return DictTable(name, QRELS_COLUMNS, keys, row)


def _plain(value: Any) -> Any:
    """Convert NumPy integers to Python's; ids and grades from a data frame are NumPy integers."""
    return int(value) if isinstance(value, Integral) and not isinstance(value, bool) else value


def write_beir(sources: Sources, folder: Path) -> None:
    """Write checked dicts as corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv."""
    (folder / "qrels").mkdir(parents=True)
    for name, tables in (("corpus", sources.corpus), ("queries", sources.queries)):
        lines = (json.dumps(_record(row), ensure_ascii=False) for row in _rows(tables))
        _write(folder / f"{name}.jsonl", lines)
    for split, tables in sources.qrels.items():
        rows = ("\t".join((_id(row, 0), _id(row, 1), str(parse_grade(row["score"])))) for row in _rows(tables))
        _write(folder / "qrels" / f"{split}.tsv", iter(["\t".join(QRELS_COLUMNS), *rows]))


def _rows(tables: list[Any]) -> Iterator[Mapping[str, Any]]:
    return (row for table in tables for _, row in table.rows(lambda columns: columns, Faults()))


def _record(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"_id": str(row["_id"]).strip(), "title": row.get("title") or "", "text": row["text"]}


def _id(row: Mapping[str, Any], column: int) -> str:
    return str(row[QRELS_COLUMNS[column]]).strip()


def _write(path: Path, lines: Iterator[str]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in lines)
