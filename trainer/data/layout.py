"""Recognition of a folder's files by their names and columns, as keys for a recipe's data section."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from trainer.data.columns import (
    CORPUS_ROLES,
    MULTI_COLUMN_ROLES,
    OPTIONAL_ROLES,
    PAIRS_ROLES,
    QRELS_ROLES,
    QUERIES_ROLES,
    ROLE_NAMES,
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
MAX_FILES = 50  # that are opened
FILL_IN = "FILL-IN"  # placeholder in a recipe for a value that a person has to fill in
# Names of files that show their content if their columns do not.
NAMED = {
    "qrels": re.compile(r"qrel|click|judg|label|relev|rating|annot|log"),
    "queries": re.compile(r"quer|question|topic|search"),
    "corpus": re.compile(r"doc|corpus|article|passage|collection|content|faq|product|item|page|kb|text"),
}
# Columns of relevant texts that no file of queries has: a file with one of them holds pairs, even if it has ids.
CLEARLY_PAIRS = {"positive", "positives", "pos", "docs", "positive_passages", "positive_messages", "positive_ctxs"}


class Layout(NamedTuple):
    """Keys for the recipe's data section, a message about each file, and the splits without judgements.

    `todo` has a comment for each key that a person has to fill in.
    """

    keys: dict[str, Any]
    messages: list[str]
    missing: list[str]
    todo: Mapping[str, str] = {}


class RecognisedFile(NamedTuple):
    """One file: its content (empty if not recognised), its split, and its columns by role."""

    path: Path
    holds: str
    split: str
    columns: Sequence[str]
    roles: Mapping[str, Sequence[str]]

    @property
    def description(self) -> str:
        """One line about the file for the terminal."""
        content = self.holds or "not recognised"
        part = f" for {self.split}" if self.holds in ("qrels", "pairs") else ""
        return f"{self.path}: {content}{part} (columns: {shown(self.columns) or 'none could be read'})"


def recognise(folder: Path) -> Layout:
    """Return the recipe's keys for the files in a folder.

    If they are not enough for a collection, the layout is an incomplete one for a person to fill in. Raises DataError
    if no file has readable columns.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; name one with {NEEDED}")
    if _is_beir(folder):
        stems = {path.name.split(".")[0] for path in (folder / "qrels").glob("*.tsv*")}
        message = f"{folder}: BEIR layout with qrels for {', '.join(split for split in SPLITS if split in stems)}"
        return Layout({"path": folder}, [message], [split for split in SPLITS if split not in stems])
    if _is_set(folder):
        return Layout({"path": Path(f"{HUB}{folder}")}, [f"{folder}: a data set folder; README.md names its files"], [])
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and ending(path) in READERS]
    files = [_recognise_file(path) for path in paths[:MAX_FILES]]
    by_content: dict[tuple[str, str], list[RecognisedFile]] = {}
    for file in files:
        by_content.setdefault((file.holds, file.split), []).append(file)
    keys = _keys(by_content)
    if keys is None and any(file.columns for file in files):
        return _incomplete_layout(files)
    if keys is None:
        others = [path.name for path in sorted(folder.iterdir()) if path not in paths][:12]
        raise DataError(
            [
                f"{folder}: no collection is recognised; needed are {NEEDED}",
                *(file.description for file in files),
                *([f"{folder}: also holds {', '.join(others)}"] if others else []),
            ]
        )
    return Layout(keys, [file.description for file in files], [split for split in SPLITS[1:] if split not in keys])


def _is_beir(folder: Path) -> bool:
    names = ("corpus.jsonl", "queries.jsonl", "qrels/train.tsv")
    return all(any((folder / f"{name}{packed}").is_file() for packed in ("", *PACKED)) for name in names)


def _is_set(folder: Path) -> bool:
    """Return True if the README's front matter lists configurations, as in a data set on the Hub."""
    readme = folder / "README.md"
    text = readme.read_text(encoding="utf-8", errors="replace") if readme.is_file() else ""
    return text.startswith("---\n") and "\nconfigs:" in text.removeprefix("---").split("\n---")[0]


def _recognise_file(path: Path) -> RecognisedFile:
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
    existing: dict[str, list[str]] = {
        role: [name for name in names if name in columns]
        for role, names in roles.items()
        if role not in OPTIONAL_ROLES or set(names) & set(columns)
    }
    return RecognisedFile(path, holds, split if holds in ("qrels", "pairs") else "train", columns, existing)


def _holds(path: Path, columns: Sequence[str], first: Mapping[str, Any]) -> str:
    """Return corpus, queries, qrels or pairs; if several are possible, the file's name or its first row decides."""

    def has(content: str) -> bool:
        return not _missing_roles(content, columns)

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


def _keys(by_content: Mapping[tuple[str, str], list[RecognisedFile]]) -> dict[str, Any] | None:
    """Return the keys of the data section, or None if files are missing."""
    if all(by_content.get((content, "train")) for content in ("corpus", "queries", "qrels")):
        contents, main = ("corpus", "queries", "qrels"), "qrels"
    elif by_content.get(("pairs", "train")):
        contents, main = ("pairs",), "pairs"
    else:
        return None
    keys: dict[str, Any] = {content: [file.path for file in by_content[content, "train"]] for content in contents}
    parts = [part for part in SPLITS[1:] if (main, part) in by_content]
    keys |= {part: [file.path for file in by_content[main, part]] for part in parts}
    for content in contents:
        splits = SPLITS if content == main else SPLITS[:1]
        files = [file for split in splits for file in by_content.get((content, split), []) if not _needs_no_key(file)]
        for role in dict.fromkeys(role for file in files for role in file.roles):
            names = [name for file in files for name in file.roles.get(role, ())]
            several = role in MULTI_COLUMN_ROLES
            keys[role] = list(files[0].roles.get(role, ())) if several else list(dict.fromkeys(names))
    return {key: value for key, value in keys.items() if value}


def _needs_no_key(file: RecognisedFile) -> bool:
    """Return True if a file's columns are read without keys in the recipe."""
    return ending(file.path) in (".qrels", ".trec", ".txt") or set(file.columns) == set(QRELS_COLUMNS)


def _required_roles(content: str) -> list[str]:
    return [role for role in ROLES[content] if role not in OPTIONAL_ROLES]


def _missing_roles(content: str, columns: Sequence[str]) -> list[str]:
    """Return the required roles of a kind of content for which there is no column with a usual name."""
    return [role for role in _required_roles(content) if not usual(role, columns)]


def _incomplete_layout(recognised: Sequence[RecognisedFile]) -> Layout:
    """Return the known keys for corpus, queries and qrels, with comments on the keys that have to be filled in."""
    guessed: dict[str, list[RecognisedFile]] = {content: [] for content in ("corpus", "queries", "qrels")}
    messages = []
    for file in recognised:
        content = _guess(file)
        message = file.description
        if content and not file.holds and (roles := _missing_roles(content, file.columns)):
            missing = ", ".join(f"{ROLE_NAMES[role]} (data.{role})" for role in roles)
            message += f"; for {content} it lacks a column with a usual name for: {missing}"
        messages.append(message)
        if content in guessed:
            guessed[content].append(file)
    keys: dict[str, Any] = {}
    todo: dict[str, str] = {}
    for content, files in guessed.items():
        keys[content] = [file.path for file in files] or FILL_IN
        if not files:
            todo[content] = "a file with " + ", ".join(ROLE_NAMES[role] for role in _required_roles(content))
        columns = list(dict.fromkeys(name for file in files for name in file.columns))
        for role in ROLES[content]:
            names = [name for name in usual(role, columns) if name in columns]
            if names or (files and role not in OPTIONAL_ROLES):
                keys[role] = names or FILL_IN
            if files and not names and role not in OPTIONAL_ROLES:
                todo[role] = f"{ROLE_NAMES[role]}: one of {', '.join(columns)}"
    messages.append(f"no collection is recognised, so the recipe is incomplete: fill in {', '.join(todo)}")
    return Layout(keys, messages, list(SPLITS[1:]), todo)


def _guess(file: RecognisedFile) -> str:
    """Return the probable content of a file: by its columns, else by its name, else by some of its columns."""
    if file.holds or not file.columns:
        return file.holds
    named = [content for content, pattern in NAMED.items() if pattern.search(file.path.stem.lower())]
    if named:
        return named[0]
    partly = (
        content
        for content in ("corpus", "queries", "qrels")
        if any(usual(role, file.columns) for role in _required_roles(content))
    )
    return next(partly, "")
