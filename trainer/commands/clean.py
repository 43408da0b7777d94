"""Disk use of runs and caches, and deletion of files that no later run of the same recipes needs.

Deletable are outdated stages that were renamed when they ran again, temporary files of finished stages, and caches that
belong to no run. A folder in `.embeddings` or `.teachers` is named by a hash of a model and its settings (maximum
length, prompt, precision). It is kept if the name results from any model of any run with settings of any run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from rich.filesize import decimal

from trainer.commands.run_folders import MOVED_ASIDE, runs_in, size_of, stages_of
from trainer.errors import RunError
from trainer.model_files import references
from trainer.runtime import console
from trainer.runtime.lock import hold, is_held
from trainer.runtime.machine import EMBEDDINGS, TEACHERS
from trainer.runtime.run_folder import CONTENT, json_sha256, read_record, remove
from trainer.runtime.verify import RECORDS, WORK

CACHES = (EMBEDDINGS, TEACHERS)
PRECISIONS: tuple[list[str], ...] = ([], ["bf16"], ["fp16"])  # fp32 has no name of its own
MOVED, LEFT_OVER, UNUSED = "older stage", "left over", "unused cache"


@dataclass(frozen=True)
class Deletable:
    """A file or folder that can be deleted, with its kind and size."""

    path: Path
    kind: str
    bytes: int


def clean(runs: Path, yes: bool) -> None:
    """Print the disk use of runs and caches and the files that can be deleted; with `yes` delete them.

    No file of an active run is deleted, and no cache while a run is active. Raises RunError if the folder does not
    exist, or if a file cannot be deleted.
    """
    folders = runs_in(runs)
    with ExitStack() as locks:
        running = [folder for folder in folders if not _is_free(folder, locks if yes else None)]
        found = [one for folder in folders if folder not in running for one in _deletable_in(folder)]
        if not running:
            found += _unused_caches(runs, folders)
        _show(runs, folders, running, found)
        if yes:
            for one in found:
                remove(one.path)
                console.stage("clean", f"deleted {one.path}")
    freed = decimal(sum(one.bytes for one in found))
    if not found:
        console.stage("clean", "nothing can be deleted")
    elif yes:
        console.stage("clean", f"{freed} freed", style="green")
    else:
        console.stage("clean", f"{freed} can be freed; nothing was deleted; to delete it: --yes")


def _is_free(folder: Path, locks: ExitStack | None) -> bool:
    """Return whether no process uses a run; with `locks` the run is locked until files are deleted."""
    if locks is None:
        return not is_held(folder / ".lock")
    try:
        locks.enter_context(hold(folder / ".lock", "run"))
    except RunError:
        return False
    return True


def _deletable_in(folder: Path) -> Iterator[Deletable]:
    """Yield the files and folders in a run folder that can be deleted."""
    for path in sorted(folder.iterdir()):
        if _is_moved_aside(path):
            yield Deletable(path, MOVED, size_of(path))
    for stage in stages_of(folder):
        if read_record(stage / "done.json"):
            for path in sorted(path for pattern in WORK for path in stage.glob(pattern)):
                yield Deletable(path, LEFT_OVER, size_of(path))


def _is_moved_aside(path: Path) -> bool:
    """Return whether a folder is an outdated stage that was renamed completely.

    If the stage's folder is a link, its files are moved one by one, done.json last.
    """
    found = MOVED_ASIDE.fullmatch(path.name)
    if found is None or path.is_symlink() or not path.is_dir():
        return False
    if not any((path / name).exists() for name in RECORDS):  # a folder of the user, whose name looks like one of ours
        return False
    return (path / "done.json").exists() or not path.with_name(found[1]).is_symlink()


def _unused_caches(runs: Path, folders: Sequence[Path]) -> Iterator[Deletable]:
    """Yield the caches that belong to no run; none if a run is so damaged that its models are unknown."""
    caches = [path for name in CACHES if (runs / name).is_dir() for path in sorted((runs / name).iterdir())]
    caches = [path for path in caches if path.is_dir() and not path.is_symlink()]
    if not caches:
        return
    stages = [stage for folder in folders for stage in stages_of(folder)]
    if unknown := [stage for stage in stages if _depends(stage) is None]:
        console.warn("clean", f"{unknown[0]} does not say which models it used, so all caches are kept")
        return
    needed = _names_of_caches(stages, teachers=(runs / CACHES[1]).is_dir())
    for path in caches:
        if path.name not in needed:
            yield Deletable(path, UNUSED, size_of(path))


def _depends(stage: Path) -> dict[str, Any] | None:
    """Return the recorded inputs of a stage by name, None if there is no record."""
    record = read_record(stage / "done.json") or read_record(stage / "begun.json")
    depends = record.get("depends") if record else None
    return depends if isinstance(depends, dict) else None


def _names_of_caches(stages: Iterable[Path], teachers: bool) -> set[str]:
    """Return the possible names of caches: each model of these stages combined with all settings that occur in them.

    Trained models are teachers in mine-2 and distil; their weights are hashed only if `teachers` is set.
    """
    models: set[str] = set()
    lengths: dict[str, set[Any]] = {"retriever": set(), "reranker": set()}
    prompts: set[Any] = set()
    for stage in stages:
        depends, recipe = _depends(stage) or {}, read_record(stage / "recipe.json") or {}
        models |= {value for key, value in depends.items() if key.startswith(CONTENT) and isinstance(value, str)}
        if teachers and (stage / "best").is_dir():
            models.add(references.fingerprint(stage / "best"))
        for name, known in lengths.items():
            known.add((recipe.get(name) or {}).get("max_length"))
        prompts |= {(recipe.get("retriever") or {}).get(f"{role}_prompt") for role in ("query", "document")}
    embedded = product(models, lengths["retriever"], ("query", "document"), prompts, PRECISIONS)
    asked = product(models, lengths["reranker"], PRECISIONS)
    parts = [[*others, *precision] for *others, precision in (*embedded, *asked)]
    return {json_sha256(*one)[:16] for one in parts}


def _show(runs: Path, folders: Sequence[Path], running: Sequence[Path], found: Sequence[Deletable]) -> None:
    """Print the disk use of runs and caches, and the files that can be deleted."""
    rows = [[folder.name, decimal(size_of(folder)), _states(folder, folder in running)] for folder in folders]
    rows += [[name, decimal(size_of(runs / name)), "cache"] for name in CACHES if (runs / name).is_dir()]
    if rows:
        console.table(str(runs), ["folder", "size", "state"], rows, left=["state"])
    if running and any((runs / name).is_dir() for name in CACHES):
        console.stage("clean", f"all caches are kept while {running[0].name} is running")
    if found:
        rows = [[str(one.path), decimal(one.bytes), one.kind] for one in found]
        console.table("", ["can be deleted", "size", "kind"], rows, left=["kind"])


def _states(folder: Path, is_running: bool) -> str:
    """Return the state of a run for the table: whether it is active, and its unfinished stages."""
    if is_running:
        return "running or locked; nothing of it is deleted"
    begun = [stage for stage in stages_of(folder) if not (stage / "done.json").exists()]
    work = [f"{stage.name} ({decimal(size_of(stage))})" for stage in begun]
    return f"run; unfinished, kept to continue from: {', '.join(work)}" if work else "run"
