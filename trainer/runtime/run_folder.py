"""The run folder `runs/NAME/STAGE/`, and the check that a stage in it is complete, intact and made from this recipe.

A stage's fingerprint is the hash of everything that its result depends on: recipe keys, the content of its inputs, the
model weights and the version of its code. `begun.json` holds the fingerprint of unfinished work. `done.json`, written
last, marks the stage as complete and records every file that later stages read. No result is reused by its name alone,
and no finished result is deleted without notice: it moves to `STAGE.FINGERPRINT`, where the latest one remains.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any
from uuid import uuid4

from trainer.errors import RunError, one_line
from trainer.runtime import console, verify

PACKAGES = ("domain-reranker", "torch", "transformers", "sentence-transformers", "accelerate", "datasets", "faiss-cpu")
CONTENT = "content of "  # prefix of inputs that are recorded by their hash
LABEL = re.compile(r"[0-9a-f]{8}")  # suffix of the folder that an outdated stage is moved to
DAMAGED = "damaged"  # the suffix if the stage's files were changed
ABANDONED = 24 * 3600  # seconds after which a partial file in a shared cache is taken to be left over from a kill


def json_sha256(*parts: Any) -> str:
    """Return the sha256 of values that can be written as JSON."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically: a reader gets the old file or the new one, never a part of it."""
    if path.is_dir():
        remove(path)
    with replacing(path) as partial:
        partial.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file of a run; raises RunError if it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"not JSON: {one_line(error)}"
        raise RunError(f"{path}: cannot be read ({reason}); delete it, then run the same command again") from None


def read_record(path: Path) -> dict[str, Any] | None:
    """Return the JSON object in a file: None if there is no file, empty if it is damaged."""
    if not os.path.lexists(path):
        return None
    try:
        content = read_json(path)
    except RunError:
        return {}
    return content if isinstance(content, dict) else {}


def remove(path: Path) -> None:
    """Delete a file, a link or a folder with its content, if it exists; raises RunError if that fails."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise RunError(
            f"{error.filename or path}: cannot be deleted ({error.strerror}); delete {path} yourself, then run the "
            "same command again"
        ) from None


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a unique temporary path to write to; the finished file then replaces `path` atomically.

    So runs that share a folder never write to one file or read an incomplete one. Partial files that a killed process
    left in the folder are deleted after a day.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for left_over in path.parent.glob(".*.partial"):
        try:
            if time.time() - left_over.stat().st_mtime > ABANDONED:
                left_over.unlink()
        except FileNotFoundError:  # another run has deleted it
            continue
    partial = path.with_name(f".{path.name}.{uuid4().hex}.partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder to write to, which then replaces `folder` by two renames.

    A process that is killed between them leaves the old folder as `.NAME.old`; the next call renames it back first.
    """
    partial, old = (folder.with_name(f".{folder.name}.{kind}") for kind in ("partial", "old"))
    if old.exists() and not folder.exists():
        old.rename(folder)
    for left_over in (partial, old):
        remove(left_over)
    partial.mkdir(parents=True)
    yield partial
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    remove(old)


@dataclass
class StageFolder:
    """One stage's folder, for one set of inputs.

    `depends` holds every input of the result, by recipe key or by a description; `previous` is the stage before it.
    """

    folder: Path
    depends: dict[str, Any]
    previous: StageFolder | None = None
    started: float = field(default_factory=time.monotonic)

    @classmethod
    def of(cls, folder: Path, depends: Mapping[str, Any], previous: StageFolder | None) -> StageFolder:
        """Return the stage of a folder; `depends` is converted to JSON and back, to be compared with a saved one."""
        return cls(folder, json.loads(json.dumps(depends, default=str)), previous)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of everything that the stage depends on."""
        return json_sha256(self.folder.name, self.depends)

    @property
    def done(self) -> dict[str, Any] | None:
        """The notes of `finish` if the stage is complete, intact and made from these inputs, else None."""
        notes = read_record(self.folder / "done.json")
        return notes if notes and not self._why_outdated(notes) else None

    def begin(self, recipe: Any) -> None:
        """Prepare the folder for the stage and write the recipe to it; unfinished work of the same fingerprint remains.

        A finished stage of other inputs, or one whose files changed, is moved to another folder; unfinished work of
        other inputs is deleted. Both are reported. Raises RunError if the folder cannot be cleared.
        """
        _require_folder(self.folder)
        done, begun = (read_record(self.folder / name) for name in ("done.json", "begun.json"))
        if done is not None:
            reason, owner = self._why_outdated(done), done.get("fingerprint")
            intact = owner != self.fingerprint or self._why_previous_differs(done)
            backup = self._move_away(owner[:8] if isinstance(owner, str) and intact else DAMAGED)
            self._report(f"{reason}; the stage runs again, and its old result is now in {backup}")
        elif begun and (reason := self._why_not_resumable(begun)):
            self._report(f"{reason}; unfinished work is deleted")
            self._clear()
        elif not begun and any(self.folder.iterdir()):
            backup = self._move_away(DAMAGED)
            self._report(f"{self.folder} holds unfinished work without a readable begun.json; it is now in {backup}")
        write_json(self.folder / "recipe.json", recipe)
        own = {"fingerprint": self.fingerprint, "before": self._before(), "depends": self.depends}
        write_json(self.folder / "begun.json", own)
        self.started = time.monotonic()

    def finish(self, said: str = "", **notes: Any) -> dict[str, Any]:
        """Mark the stage as complete, delete files that only unfinished work needs, and return the notes.

        `said` is the stage's line for the terminal.
        """
        owner = (read_record(self.folder / "begun.json") or {}).get("fingerprint", self.fingerprint)
        if owner != self.fingerprint:
            raise RunError(f"{self.folder}: another run has started in it meanwhile; start one run at a time")
        before, files = self._before(), verify.record(self.folder, verify.results(self.folder))
        facts = {
            "fingerprint": self.fingerprint,
            "said": said,
            "seconds": round(time.monotonic() - self.started, 1),
            "peak_memory_mib": _peak_memory(),
            "versions": {package: _version(package) for package in PACKAGES},
        }
        record = {"depends": self.depends, "before": before, "content": _content(before, files), "files": files}
        write_json(self.folder / "done.json", facts | notes | record)
        self.tidy()
        return facts | notes | record

    def tidy(self) -> None:
        """Delete files that a finished stage does not need: checkpoints, three times the size of the model."""
        for pattern in verify.WORK:
            for path in self.folder.glob(pattern):
                remove(path)

    def _before(self) -> str | None:
        """Return the hash of the files of all stages before this one."""
        notes = self.previous and read_record(self.previous.folder / "done.json")
        return notes.get("content") if notes else None

    def _why_outdated(self, done: Mapping[str, Any]) -> str:
        """Return the reason why a stage with these notes has to run again, or an empty string."""
        if not isinstance(done.get("fingerprint"), str):
            return f"{self.folder / 'done.json'} is damaged"
        if done["fingerprint"] != self.fingerprint:
            return _changes(done.get("depends"), self.depends)
        if not done.keys() >= {"said", "before", "content", "files"}:
            return f"{self.folder / 'done.json'} is damaged"
        try:
            if done["content"] != _content(done["before"], done["files"]):
                return f"{self.folder / 'done.json'} is damaged"
            return self._why_previous_differs(done) or verify.difference(self.folder, done["files"])
        except (KeyError, TypeError, AttributeError):
            return f"{self.folder / 'done.json'} is damaged"

    def _why_not_resumable(self, begun: Mapping[str, Any]) -> str:
        """Return the reason why unfinished work cannot be resumed, or an empty string."""
        if begun.get("fingerprint") != self.fingerprint:
            return _changes(begun.get("depends"), self.depends)
        return self._why_previous_differs(begun)

    def _why_previous_differs(self, notes: Mapping[str, Any]) -> str:
        if self.previous is None or notes.get("before") == self._before():
            return ""
        return f"the result of {self.previous.folder.name} changed"

    def _report(self, text: str) -> None:
        console.warn(self.folder.name, text)

    def _clear(self) -> None:
        """Delete the folder's content, not the folder, which may be a link to another disk."""
        for path in self.folder.iterdir():
            remove(path)

    def _move_away(self, label: str) -> Path:
        """Move the folder's content to `STAGE.LABEL`, delete earlier results there, and return the new folder."""
        name = self.folder.name
        target = self.folder.with_name(f"{name}.{label}")
        for path in self.folder.parent.glob(f"{name}.*"):
            same_kind = path == target or (LABEL.fullmatch(label) and LABEL.fullmatch(path.name[len(name) + 1 :]))
            if same_kind and not (path == target and self.folder.is_symlink() and not (path / "done.json").exists()):
                remove(path)
        try:
            if not self.folder.is_symlink():
                self.folder.rename(target)
            else:  # the link remains; done.json is moved last, so that an interrupted move is resumed
                target.mkdir(exist_ok=True)
                for path in sorted(self.folder.iterdir(), key=lambda path: path.name == "done.json"):
                    shutil.move(path, target / path.name)
            self.folder.mkdir(exist_ok=True)
        except OSError as error:
            raise RunError(
                f"{self.folder}: cannot be moved to {target} ({one_line(error)}); move it yourself, then run the same "
                "command again"
            ) from None
        return target


def begun_fingerprint(folder: Path) -> str | None:
    """Return the fingerprint of the stage whose unfinished work a folder holds, None if it is unknown."""
    return (read_record(folder / "begun.json") or {}).get("fingerprint")


def _require_folder(folder: Path) -> None:
    """Make the folder if it does not exist; raises RunError if another kind of file has its name."""
    if folder.is_symlink() and not folder.exists():
        raise RunError(f"{folder}: a link to {os.readlink(folder)}, which does not exist; make it, or remove the link")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{folder}: cannot be used as a folder ({error.strerror}); move it away") from None


def _content(before: str | None, files: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the hash of the files of a stage and of all stages before it."""
    return json_sha256(before, {name: file["sha256"] for name, file in files.items()})


def _changes(before: Any, now: Mapping[str, Any]) -> str:
    """Return a description of the first three differences between the inputs of two stages."""
    if not isinstance(before, dict) or not before:
        return "it was made by another version of this program"
    differing = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    changes = [
        f"the {key} changed"
        if key.startswith(CONTENT)
        else f"{key} changed from {_shown(before.get(key))} to {_shown(now.get(key))}"
        for key in differing[:3]
    ]
    more = [f"{len(differing) - 3} more keys changed"] if len(differing) > 3 else []
    return ", ".join(changes + more) or "it was made by another version of this program"


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _peak_memory() -> int | None:
    """Return the peak memory of this process in MiB, None on Windows, where Python cannot read it."""
    try:
        import resource
    except ModuleNotFoundError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1 << 20 if sys.platform == "darwin" else 1 << 10)


def _version(package: str) -> str:
    try:
        return version(package)
    except ModuleNotFoundError:
        return "not installed"
