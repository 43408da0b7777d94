"""Sizes and hashes of finished files: recorded when they are written, compared before they are used."""

from __future__ import annotations

import hashlib
import os
import stat
import zipfile
from collections.abc import Iterable, Mapping
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any

# Files of an unfinished stage, which are deleted when it is finished.
WORK = ("checkpoint-*", "checkpoint.partial", "trained", ".best-*", ".*.partial", ".*.npz")
# Files for people, who may edit them (labels by hand, a model card); no later stage depends on them.
FOR_PEOPLE = ("metrics.jsonl", "suspected_false_negatives.jsonl", "report.md", "README.md", "wandb")
RECORDS = ("begun.json", "done.json", "recipe.json")  # of the stage itself


def intact_archive(path: Path) -> bool:
    """Return True if a file is a readable .npz archive whose members match their checksums."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile, NotImplementedError):
        return False


def results(folder: Path) -> list[Path]:
    """Return the files under `folder` that later stages or users depend on, sorted by name."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return [path for path in paths if not _is_exempt(path.relative_to(folder))]


def _is_exempt(name: Path) -> bool:
    exempt = (*WORK, *FOR_PEOPLE, *RECORDS, ".*")
    return any(fnmatch(part, pattern) for part in (name.parts[0], name.name) for pattern in exempt)


def record(folder: Path, paths: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """Return size, modification time and sha256 of each file, by its path relative to `folder`.

    Each file is flushed to disk first, so that after a power failure no record exists without its files.
    """
    files = {}
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())
        state = path.stat()
        files[path.relative_to(folder).as_posix()] = {
            "bytes": state.st_size,
            "mtime_ns": state.st_mtime_ns,
            "sha256": sha256(path),
        }
    return files


def difference(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a description of the first file that differs from its record, or an empty string.

    A file of the same size and modification time counts as unchanged; otherwise the hashes are compared.
    """
    for name, recorded in files.items():
        path = folder / name
        try:
            state = path.stat()
            if not stat.S_ISREG(state.st_mode):
                return f"{path} is not a file"
            if state.st_size != recorded["bytes"]:
                return f"{path} has {state.st_size:,} bytes instead of {recorded['bytes']:,}"
            if state.st_mtime_ns != recorded["mtime_ns"] and sha256(path) != recorded["sha256"]:
                return f"{path} was changed after it was written"
        except (FileNotFoundError, NotADirectoryError):
            return f"{path} is missing"
        except OSError as error:
            return f"{path} cannot be read ({error.strerror})"
    return ""


def sha256(path: Path) -> str:
    """Return the sha256 of a file's content, cached as long as its size and modification time are the same."""
    state = path.stat()
    return _sha256(path, state.st_size, state.st_mtime_ns)


@cache
def _sha256(path: Path, size: int, modified: int) -> str:
    del size, modified
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
