"""The sources of rows: the files or the data set that a recipe's data section names."""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from trainer.data.columns import settings
from trainer.data.hub import SetTable, find_set
from trainer.data.lines import PACKED
from trainer.data.records import SPLITS
from trainer.data.tables import (
    READERS,
    FileTable,
    Headerless,
    Table,
    ending,
    qrels_columns,
    record_columns,
    with_header,
)
from trainer.errors import DataError
from trainer.recipe import Data
from trainer.runtime.verify import sha256

BLOCK = 1 << 20  # bytes hashed at once


@dataclass(frozen=True)
class Sources:
    """Tables by content: corpus, queries, qrels and click logs, or pairs."""

    corpus: list[Table] = field(default_factory=list)
    queries: list[Table] = field(default_factory=list)
    qrels: dict[str, list[Table]] = field(default_factory=dict)
    pairs: dict[str, list[Table]] = field(default_factory=dict)
    clicks: list[Table] = field(default_factory=list)

    @property
    def judged(self) -> dict[str, list[Table]]:
        """The tables that assign queries to splits."""
        return self.pairs or self.qrels

    @property
    def named(self) -> list[tuple[str, Table]]:
        """Every table with its content or split, in a fixed order."""
        parts = {"corpus": self.corpus, "queries": self.queries, **self.qrels, **self.pairs, "clicks": self.clicks}
        return [(part, table) for part, tables in parts.items() for table in tables]


def find_sources(section: Data) -> Sources:
    """Return the tables that the section names; raises DataError with all missing files."""
    if section.hub:
        corpus, queries, judged, pairs = find_set(section.hub, section.needs_splits)
        return Sources(corpus, queries, judged, pairs)
    if section.path is not None:
        return _beir_folder(section.path, section.separator, section.needs_splits)
    missing: list[str] = []

    def tables(key: str, formats: Iterable[str], headerless: Headerless = with_header) -> list[Table]:
        paths = _files(key, getattr(section, key) or (), formats, missing)
        return [FileTable(path, headerless, section.separator) for path in paths]

    records = [suffix for suffix in READERS if suffix not in (".qrels", ".trec", ".txt")]
    if section.pairs:
        parts = {"train": "pairs", "dev": "dev", "test": "test"}
        pairs = {part: existing for part, key in parts.items() if (existing := tables(key, records))}
        sources = Sources(pairs=pairs)
    else:
        parts = {"train": "qrels", "dev": "dev", "test": "test"}
        qrels = {part: existing for part, key in parts.items() if (existing := tables(key, READERS, qrels_columns))}
        corpus, queries = (tables(key, records, record_columns) for key in ("corpus", "queries"))
        sources = Sources(corpus, queries, qrels, clicks=tables("clicks", records))
    if missing:
        raise DataError(missing)
    return sources


def _files(key: str, patterns: Iterable[Path], formats: Iterable[str], missing: list[str]) -> list[Path]:
    """Return the files of one key, given as names or globs; messages about unusable ones are added to `missing`."""
    files: list[Path] = []
    for pattern in patterns:
        matches = [pattern] if pattern.exists() else sorted(map(Path, glob.glob(str(pattern), recursive=True)))
        if not matches:
            siblings = sorted(path.name for path in pattern.parent.glob("*"))[:12] if pattern.parent.is_dir() else []
            missing.append(
                f"{pattern}: no such file (data.{key}); {pattern.parent} holds {', '.join(siblings) or 'nothing'}"
            )
        for path in matches:
            if path.is_dir():
                missing.append(f"{path}: is a folder (data.{key}); name its files, e.g. {path / '*.parquet'}")
            elif reason := _why_unreadable(path):
                missing.append(f"{path}: {reason} (data.{key})")
            elif ending(path) not in formats:
                missing.append(
                    f"{path}: unknown ending {ending(path)!r} (data.{key}); "
                    f"known here: {', '.join(formats)}, the text formats also with {', '.join(PACKED)}"
                )
            elif path in files:
                missing.append(f"{path}: named twice by data.{key}; keep it once")
            else:
                files.append(path)
    return files


def _why_unreadable(path: Path) -> str:
    """Return the reason why an existing path is not a file that can be read repeatedly, or an empty string."""
    if path.is_dir():
        return "is a folder; a file is needed, move the folder away"
    if not path.exists():
        return f"is a link to {os.readlink(path)}, which does not exist; correct or remove the link"
    if not path.is_file():
        return "is a pipe or a device, but the files are read more than once; save the content as a file first"
    return "" if os.access(path, os.R_OK) else "cannot be read: permission denied; check its owner and mode (ls -l)"


def _beir_folder(folder: Path, separator: str | None, needs_train: bool) -> Sources:
    """Return corpus.jsonl, queries.jsonl and qrels/*.tsv of a folder, plain or compressed.

    Of the splits only train is required, or any one of them without `needs_train`.
    """
    if not folder.is_dir():
        key = "data.path" if needs_train else "evaluate.guard"
        raise DataError(f"{folder}: no such folder; {key} names a folder with corpus.jsonl, queries.jsonl and qrels/")
    missing = []

    def find(name: str, needed: bool = True) -> list[Path]:
        plain = folder / name
        names = (plain, *(folder / f"{name}{packed}" for packed in PACKED))
        existing = [path for path in names if os.path.lexists(path)]
        missing.extend(f"{path}: {reason}" for path in existing if (reason := _why_unreadable(path)))
        if len(existing) > 1:
            missing.append(f"{existing[0]}: {existing[1].name} exists too; keep one of them")
        if needed and not existing:
            siblings = sorted(path.name for path in plain.parent.glob("*")) if plain.parent.is_dir() else []
            missing.append(f"{plain}: missing (plain or .gz); {plain.parent} holds {', '.join(siblings) or 'nothing'}")
        return existing

    corpus, queries = find("corpus.jsonl"), find("queries.jsonl")
    qrels = {split: find(f"qrels/{split}.tsv", needed=needs_train and split == "train") for split in SPLITS}
    if not any(qrels.values()) and not needs_train:
        missing.append(f"{folder / 'qrels'}: holds none of test.tsv, dev.tsv and train.tsv; one of them is needed")
    if needs_train and not qrels["train"] and (qrels["dev"] or qrels["test"]):
        missing.append(
            f"{folder / 'qrels'}: to split one file of judgements, use data.corpus, data.queries and data.qrels"
        )
    if missing:
        raise DataError(missing)
    judged: dict[str, list[Table]] = {
        split: [FileTable(path, qrels_columns, separator) for path in paths] for split, paths in qrels.items() if paths
    }
    return Sources([FileTable(corpus[0])], [FileTable(queries[0])], judged)


def fingerprint_data(section: Data) -> str:
    """Return the sha256 over the content of all inputs and the settings for reading them."""
    digest = hashlib.sha256()
    for part, table in find_sources(section).named:  # per file, since a line moved to the next file is a change
        assert isinstance(table, FileTable | SetTable), table
        kind, content = (
            (table.path.suffix, sha256(table.path)) if isinstance(table, FileTable) else ("", table.sha256())
        )
        digest.update(f"{part} {kind} {content}\n".encode())
    if section.judgements is not None and section.judgements.is_file():
        digest.update(f"judgements {sha256(section.judgements)}\n".encode())
    digest.update(f"{section.dev_share} {section.test_share} {settings(section)}".encode())
    return digest.hexdigest()
