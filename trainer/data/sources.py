"""Where the rows come from: the files that a recipe's data section names."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

from trainer.data.records import SPLITS
from trainer.errors import DataError
from trainer.recipe import Data


class Files(NamedTuple):
    """The files of a BEIR folder."""

    corpus: Path
    queries: Path
    qrels: dict[str, Path]

    @property
    def all(self) -> list[Path]:
        """Every file, in a fixed order."""
        return [self.corpus, self.queries, *self.qrels.values()]


def find_files(folder: Path) -> Files:
    """Locate corpus, queries and the three qrels files, each plain or .gz; raises DataError naming all that miss."""
    if not folder.is_dir():
        raise DataError(
            f"{folder}: no such folder; data.path names a folder with corpus.jsonl, queries.jsonl and qrels/"
        )
    missing = []

    def find(name: str) -> Path:
        plain, packed = folder / name, folder / f"{name}.gz"
        if plain.is_file() and packed.is_file():
            missing.append(f"{plain}: stands beside {packed.name}; keep one of them")
        if not plain.is_file() and not packed.is_file():
            beside = sorted(path.name for path in plain.parent.glob("*")) if plain.parent.is_dir() else []
            missing.append(f"{plain}: missing (plain or .gz); {plain.parent} holds {', '.join(beside) or 'nothing'}")
        return plain if plain.is_file() else packed

    files = Files(find("corpus.jsonl"), find("queries.jsonl"), {split: find(f"qrels/{split}.tsv") for split in SPLITS})
    if missing:
        raise DataError(missing)
    return files


def fingerprint_data(section: Data) -> str:
    """sha256 over the content of all files of the collection."""
    digest = hashlib.sha256()
    for path in find_files(section.path).all:
        content = hashlib.sha256()  # each by itself: a line moved to the next file is a change
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                content.update(block)
        digest.update(content.digest())
    return digest.hexdigest()
