"""What a folder holds, seen from its names and columns, in the words of a recipe's data section."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from trainer.data.columns import (
    CORPUS_ROLES,
    OPTIONAL,
    PAIRS_ROLES,
    QRELS_ROLES,
    QUERIES_ROLES,
    SEVERAL,
    WHAT,
    shown,
    usual,
)
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
FILL_IN = "FILL-IN"  # stands in a skeleton where a person has to write a name
# Names of files that say what they hold where their columns do not.
NAMED = {
    "qrels": re.compile(r"qrel|click|judg|label|relev|rating|annot|log"),
    "queries": re.compile(r"quer|question|topic|search"),
    "corpus": re.compile(r"doc|corpus|article|passage|collection|content|faq|product|item|page|kb|text"),
}
# Columns of relevant texts that are none of a query's own: with one of them, ids make no queries file of pairs.
CLEARLY_PAIRS = {"positive", "positives", "pos", "docs", "positive_passages", "positive_messages", "positive_ctxs"}


class Layout(NamedTuple):
    """Keys for the recipe's data section, a line about each thing that was seen, and splits without judgements.

    `open` has a comment for each key that a person has to fill in.
    """

    keys: dict[str, Any]
    said: list[str]
    missing: list[str]
    open: Mapping[str, str] = {}


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
    """Say how a recipe names what lies in the folder, as far as that can be told.

    Where it is not enough, the layout is a skeleton for a person to fill in. Raises DataError where no file has any.
    """
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
    if keys is None and any(file.columns for file in seen):
        return _skeleton(seen)
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
        return not _lacks(what, columns)

    if has("qrels") and not _has_spaces(first, usual("qrels_query", columns)[0]):
        return "qrels"
    ids = has("corpus") or has("queries")
    if has("pairs") and (not ids or usual("pairs_positive", columns)[0].lower() in CLEARLY_PAIRS):
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
        parts = SPLITS if way == main else SPLITS[:1]
        files = [file for split in parts for file in found.get((way, split), []) if not _needs_no_key(file)]
        for role in dict.fromkeys(role for file in files for role in file.roles):
            names = [name for file in files for name in file.roles.get(role, ())]
            keys[role] = list(files[0].roles.get(role, ())) if role in SEVERAL else list(dict.fromkeys(names))
    return {key: value for key, value in keys.items() if value}


def _needs_no_key(file: Seen) -> bool:
    """Whether a file's columns are read without being named."""
    return ending(file.path) in (".qrels", ".trec", ".txt") or set(file.columns) == set(QRELS_COLUMNS)


def _lacks(what: str, columns: Sequence[str]) -> list[str]:
    """Return the roles that a file needs to hold something and has no usual column for."""
    return [role for role in ROLES[what] if role not in OPTIONAL and not usual(role, columns)]


def _skeleton(seen: Sequence[Seen]) -> Layout:
    """Keys for corpus, queries and qrels with what is known, and comments on what has to be filled in."""
    guessed: dict[str, list[Seen]] = {what: [] for what in ("corpus", "queries", "qrels")}
    said = []
    for file in seen:
        what = _guess(file)
        line = file.said
        if what and not file.holds and (lacks := _lacks(what, file.columns)):
            missing = ", ".join(f"{WHAT[role]} (data.{role})" for role in lacks)
            line += f"; for {what} it lacks a column with a usual name for: {missing}"
        said.append(line)
        if what in guessed:
            guessed[what].append(file)
    keys: dict[str, Any] = {}
    todo: dict[str, str] = {}
    for what, files in guessed.items():
        keys[what] = [file.path for file in files] or FILL_IN
        if not files:
            todo[what] = "a file with " + ", ".join(WHAT[role] for role in ROLES[what] if role not in OPTIONAL)
        columns = list(dict.fromkeys(name for file in files for name in file.columns))
        for role in ROLES[what]:
            names = [name for name in usual(role, columns) if name in columns]
            if names or (files and role not in OPTIONAL):
                keys[role] = names or FILL_IN
            if files and not names and role not in OPTIONAL:
                todo[role] = f"{WHAT[role]}: one of {', '.join(columns)}"
    said.append(f"no collection is recognised, so the recipe is a skeleton: fill in {', '.join(todo)}")
    return Layout(keys, said, list(SPLITS[1:]), todo)


def _guess(file: Seen) -> str:
    """Return what a file may hold: by its columns, else by its name, else by the columns that it has some of."""
    if file.holds or not file.columns:
        return file.holds
    named = [what for what, pattern in NAMED.items() if pattern.search(file.path.stem.lower())]
    if named:
        return named[0]
    needed = {what: [role for role in ROLES[what] if role not in OPTIONAL] for what in ("corpus", "queries", "qrels")}
    return next((what for what, roles in needed.items() if any(usual(role, file.columns) for role in roles)), "")
