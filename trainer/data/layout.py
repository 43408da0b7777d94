"""What a folder holds, seen from its names and columns, in the words of a recipe's data section."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from trainer.data.columns import CORPUS_ROLES, OPTIONAL, PAIRS_ROLES, QRELS_ROLES, QUERIES_ROLES, shown, usual
from trainer.data.faults import Faults
from trainer.data.lines import PACKED
from trainer.data.records import SPLITS
from trainer.data.tables import QRELS_COLUMNS, READERS, FileTable, ending, qrels_columns, record_columns
from trainer.errors import DataError
from trainer.recipe import HUB

NEEDED = (
    "corpus.jsonl, queries.jsonl and qrels/train.tsv (BEIR layout); or files with a document id and text, with a query "
    "id and text, and with query id, document id and grade; or a file of pairs (query, positive)"
)
ROLES = {"corpus": CORPUS_ROLES, "queries": QUERIES_ROLES, "qrels": QRELS_ROLES, "pairs": PAIRS_ROLES}
FILES_LOOKED_AT = 50


class Layout(NamedTuple):
    """Keys for the recipe's data section, a line about each thing that was seen, and splits without judgements."""

    keys: dict[str, Any]
    said: list[str]
    missing: list[str]


class Seen(NamedTuple):
    """One file: what it holds (empty where nothing is recognised), for which split, and its columns by role."""

    path: Path
    holds: str
    split: str
    columns: Sequence[str]
    roles: Mapping[str, Sequence[str]]

    @property
    def said(self) -> str:
        """A line for the eye."""
        what = self.holds or "not recognised"
        part = f" for {self.split}" if self.holds in ("qrels", "pairs") else ""
        return f"{self.path}: {what}{part} (columns: {shown(self.columns) or 'none could be read'})"


def recognise(folder: Path) -> Layout:
    """Say how a recipe names what lies in the folder; raises DataError with what was seen where that is not enough."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; name one with {NEEDED}")
    if _is_beir(folder):
        stems = {path.name.split(".")[0] for path in (folder / "qrels").glob("*.tsv*")}
        said = f"{folder}: BEIR layout with qrels for {', '.join(split for split in SPLITS if split in stems)}"
        return Layout({"path": folder}, [said], [split for split in SPLITS if split not in stems])
    if _is_set(folder):
        return Layout({"path": Path(f"{HUB}{folder}")}, [f"{folder}: a data set folder; README.md names its files"], [])
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and ending(path) in READERS]
    seen = [_look(path) for path in paths[:FILES_LOOKED_AT]]
    found: dict[tuple[str, str], list[Seen]] = {}
    for file in seen:
        found.setdefault((file.holds, file.split), []).append(file)
    keys = _keys(found)
    if keys is None:
        others = [path.name for path in sorted(folder.iterdir()) if path not in paths][:12]
        raise DataError(
            [
                f"{folder}: no collection is recognised; needed are {NEEDED}",
                *(file.said for file in seen),
                *([f"{folder}: also holds {', '.join(others)}"] if others else []),
            ]
        )
    return Layout(keys, [file.said for file in seen], [split for split in SPLITS[1:] if split not in keys])


def _is_beir(folder: Path) -> bool:
    names = ("corpus.jsonl", "queries.jsonl", "qrels/train.tsv")
    return all(any((folder / f"{name}{packed}").is_file() for packed in ("", *PACKED)) for name in names)


def _is_set(folder: Path) -> bool:
    """Whether the head of the README lists configurations, as a data set's on the Hub does."""
    readme = folder / "README.md"
    text = readme.read_text(encoding="utf-8", errors="replace") if readme.is_file() else ""
    return text.startswith("---\n") and "\nconfigs:" in text.removeprefix("---").split("\n---")[0]


def _look(path: Path) -> Seen:
    faults = Faults()
    columns: list[str] = []

    def choose(names: Sequence[str]) -> Sequence[str]:
        columns.extend(names)
        return names

    table = FileTable(path, lambda row: qrels_columns(row) or record_columns(row))
    first = next(islice(table.rows(choose, faults), 1), (0, {}))[1]
    holds = _holds(path, columns, first)
    name = path.name.lower()
    split = "dev" if re.search(r"dev|val", name) else "test" if "test" in name else "train"
    roles = {role: usual(role, columns) for role in ROLES.get(holds, ())}
    there: dict[str, list[str]] = {
        role: [name for name in names if name in columns]
        for role, names in roles.items()
        if role not in OPTIONAL or set(names) & set(columns)
    }
    return Seen(path, holds, split if holds in ("qrels", "pairs") else "train", columns, there)


def _holds(path: Path, columns: Sequence[str], first: Mapping[str, Any]) -> str:
    """corpus, queries, qrels or pairs; where columns could be both, the file's name or its first row decides."""

    def has(what: str) -> bool:
        return all(usual(role, columns) for role in ROLES[what])

    if has("qrels") and not _has_spaces(first, usual("qrels_query", columns)[0]):
        return "qrels"
    ids = has("corpus") or has("queries")
    if has("pairs") and not (usual("qrels_grade", columns) or ids):
        return "pairs"
    named = re.search(r"quer|question|topic", path.stem.lower())
    asks = {"query", "question"} & set(columns)
    if has("queries") and (named or asks or not has("corpus")):
        return "queries"
    return "corpus" if has("corpus") else ""


def _has_spaces(row: Mapping[str, Any], name: str) -> bool:
    return len(str(row.get(name)).split()) > 1


def _keys(found: Mapping[tuple[str, str], list[Seen]]) -> dict[str, Any] | None:
    """The keys of the data section, or None where something is missing."""
    if all(found.get((what, "train")) for what in ("corpus", "queries", "qrels")):
        ways, main = ("corpus", "queries", "qrels"), "qrels"
    elif found.get(("pairs", "train")):
        ways, main = ("pairs",), "pairs"
    else:
        return None
    keys: dict[str, Any] = {way: [file.path for file in found[way, "train"]] for way in ways}
    keys |= {part: [file.path for file in found[main, part]] for part in ("dev", "test") if (main, part) in found}
    for way in ways:
        file = found[way, "train"][0]
        if ending(file.path) not in (".qrels", ".trec", ".txt") and set(file.columns) != set(QRELS_COLUMNS):
            keys |= {role: list(names) for role, names in file.roles.items() if names}
    return keys
