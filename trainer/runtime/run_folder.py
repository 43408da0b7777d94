"""The run folder: `runs/NAME/STAGE/`, and whether a stage there is finished, intact and of this recipe.

A stage's fingerprint is the hash of all that its result depends on: recipe keys, the content of its inputs, the
weights it uses and the version of its code. `begun.json` names the fingerprint of unfinished work. `done.json`, written
last, says that the stage is complete, and records every file that later stages read. Nothing is reused by name alone,
and no finished work is deleted without a word: it moves to `STAGE.FINGERPRINT`, where the last one is kept.
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
CONTENT = "content of "  # begins the names of inputs that are known by their hash
LABEL = re.compile(r"[0-9a-f]{8}")  # what a kept stage's folder has behind its name
DAMAGED = "damaged"  # likewise where it is kept because files of it changed
ABANDONED = 24 * 3600  # seconds after which nobody is still writing a partial file of a shared cache


def fingerprint(*parts: Any) -> str:
    """sha256 of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def write_json(path: Path, content: Any) -> None:
    """Write JSON so that a reader finds the old file or the new one, never half of one."""
    if path.is_dir():
        remove(path)
    with replacing(path) as partial:
        partial.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read what `write_json` wrote; raises RunError where it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"not JSON: {one_line(error)}"
        raise RunError(f"{path}: cannot be read ({reason}); delete it, then run the same command again") from None


def read_record(path: Path) -> dict[str, Any] | None:
    """Read a JSON object: None where there is no file, empty where it is damaged."""
    if not os.path.lexists(path):
        return None
    try:
        content = read_json(path)
    except RunError:
        return {}
    return content if isinstance(content, dict) else {}


def remove(path: Path) -> None:
    """Delete a file, a link or a whole folder, if it is there; raises RunError where that is not possible."""
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
    """Yield a name of its own to write a file under, which then replaces `path` at once.

    For folders that several runs share: no two write to one file, and none reads a file that is not whole. Partial
    files that a kill left there are deleted after a day.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for left_over in path.parent.glob(".*.partial"):
        try:
            if time.time() - left_over.stat().st_mtime > ABANDONED:
                left_over.unlink()
        except FileNotFoundError:  # another run was faster
            continue
    partial = path.with_name(f".{path.name}.{uuid4().hex}.partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@dataclass
class StageFolder:
    """One stage's folder, for one set of inputs.

    `depends` holds all that the result depends on, by recipe key or in words; `previous` is the stage before it.
    """

    folder: Path
    depends: dict[str, Any]
    previous: StageFolder | None = None
    started: float = field(default_factory=time.monotonic)

    @classmethod
    def of(cls, folder: Path, depends: Mapping[str, Any], previous: StageFolder | None) -> StageFolder:
        """Make the stage of a folder; `depends` is kept as JSON gives it back."""
        return cls(folder, json.loads(json.dumps(depends, default=str)), previous)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all that the stage depends on."""
        return fingerprint(self.folder.name, self.depends)

    @property
    def done(self) -> dict[str, Any] | None:
        """The notes of `finish` where the stage is complete, intact and made from these inputs, else None."""
        notes = read_record(self.folder / "done.json")
        return notes if notes and not self._fault(notes) else None

    def begin(self, recipe: Any) -> None:
        """Make the folder ours and note the recipe in it; unfinished work of the same fingerprint stays.

        A finished stage of other inputs, or one whose files changed, moves aside; unfinished work of other inputs is
        deleted. Both are reported. Raises RunError where the folder cannot be cleared.
        """
        _require_folder(self.folder)
        done, begun = (read_record(self.folder / name) for name in ("done.json", "begun.json"))
        if done is not None:
            fault, owner = self._fault(done), done.get("fingerprint")
            intact = owner != self.fingerprint or self._fault_of_previous(done)
            kept = self._move_aside(owner[:8] if isinstance(owner, str) and intact else DAMAGED)
            self._report(f"{fault}; the stage is done again, and what was there is kept in {kept}")
        elif begun and (fault := self._fault_of_unfinished(begun)):
            self._report(f"{fault}; unfinished work is deleted")
            self._clear()
        elif not begun and any(self.folder.iterdir()):
            kept = self._move_aside(DAMAGED)
            self._report(f"{self.folder} holds unfinished work without a readable begun.json; it is kept in {kept}")
        write_json(self.folder / "recipe.json", recipe)
        own = {"fingerprint": self.fingerprint, "before": self._before(), "depends": self.depends}
        write_json(self.folder / "begun.json", own)
        self.started = time.monotonic()

    def finish(self, said: str = "", **notes: Any) -> dict[str, Any]:
        """Declare the stage complete, delete what only unfinished work needs, and return the notes."""
        owner = (read_record(self.folder / "begun.json") or {}).get("fingerprint", self.fingerprint)
        if owner != self.fingerprint:
            raise RunError(f"{self.folder}: another run has begun in it meanwhile; run one at a time")
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
        """Delete what a finished stage does not need: checkpoints, which are three times the size of the model."""
        for pattern in verify.WORK:
            for path in self.folder.glob(pattern):
                remove(path)

    def _before(self) -> str | None:
        """Return the hash of what all stages before this one left."""
        notes = self.previous and read_record(self.previous.folder / "done.json")
        return notes.get("content") if notes else None

    def _fault(self, done: Mapping[str, Any]) -> str:
        """Return in words why a stage with these notes has to be done again, or nothing."""
        if not isinstance(done.get("fingerprint"), str):
            return f"{self.folder / 'done.json'} is damaged"
        if done["fingerprint"] != self.fingerprint:
            return _changes(done.get("depends"), self.depends)
        if not done.keys() >= {"said", "before", "content", "files"}:
            return f"{self.folder / 'done.json'} is damaged"
        try:
            if done["content"] != _content(done["before"], done["files"]):
                return f"{self.folder / 'done.json'} is damaged"
            return self._fault_of_previous(done) or verify.difference(self.folder, done["files"])
        except (KeyError, TypeError, AttributeError):
            return f"{self.folder / 'done.json'} is damaged"

    def _fault_of_unfinished(self, begun: Mapping[str, Any]) -> str:
        """Return in words why unfinished work cannot be resumed, or nothing."""
        if begun.get("fingerprint") != self.fingerprint:
            return _changes(begun.get("depends"), self.depends)
        return self._fault_of_previous(begun)

    def _fault_of_previous(self, notes: Mapping[str, Any]) -> str:
        if self.previous is None or notes.get("before") == self._before():
            return ""
        return f"{self.previous.folder.name} came out differently than before"

    def _report(self, text: str) -> None:
        console.warn(self.folder.name, text)

    def _clear(self) -> None:
        """Delete the folder's content; the folder itself may be a link to another disk."""
        for path in self.folder.iterdir():
            remove(path)

    def _move_aside(self, label: str) -> Path:
        """Move the folder's content to `STAGE.LABEL` and delete what was kept there before; returns where it is."""
        name = self.folder.name
        target = self.folder.with_name(f"{name}.{label}")
        for path in self.folder.parent.glob(f"{name}.*"):
            same_kind = path == target or (LABEL.fullmatch(label) and LABEL.fullmatch(path.name[len(name) + 1 :]))
            if same_kind and not (path == target and self.folder.is_symlink() and not (path / "done.json").exists()):
                remove(path)
        try:
            if not self.folder.is_symlink():
                self.folder.rename(target)
            else:  # the link stays; done.json goes last, so that a move that is interrupted goes on
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
    """Return the fingerprint of the stage whose unfinished work a folder holds, where it is known."""
    return (read_record(folder / "begun.json") or {}).get("fingerprint")


def _require_folder(folder: Path) -> None:
    """Make the folder where there is none; raises RunError where something else is in its place."""
    if folder.is_symlink() and not folder.exists():
        raise RunError(f"{folder}: a link to {os.readlink(folder)}, which is not there; make it, or remove the link")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"{folder}: cannot be used as a folder ({error.strerror}); move away what is there") from None


def _content(before: str | None, files: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the hash of what a stage and all before it left."""
    return fingerprint(before, {name: file["sha256"] for name, file in files.items()})


def _changes(before: Any, now: Mapping[str, Any]) -> str:
    """Return in words what differs between the inputs of two stages, the first three of them."""
    if not isinstance(before, dict) or not before:
        return "it was made by another version of this program"
    differing = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    words = [
        f"the {key} changed"
        if key.startswith(CONTENT)
        else f"{key} changed from {_shown(before.get(key))} to {_shown(now.get(key))}"
        for key in differing[:3]
    ]
    more = [f"{len(differing) - 3} more keys changed"] if len(differing) > 3 else []
    return ", ".join(words + more) or "it was made by another version of this program"


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _peak_memory() -> int | None:
    """Return the largest memory of this process so far in MiB, None on Windows, which does not tell Python."""
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
