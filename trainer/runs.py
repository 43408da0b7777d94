"""The run folder: `runs/NAME/STAGE/`, and whether what lies there still stands.

A stage's fingerprint is the hash of everything it depends on: its recipe sections, the content of its inputs, the
weights it uses and its own version. `begun.json` says whose unfinished work a folder holds, `done.json`, written
last, that it is complete. Nothing is ever reused by name or path alone.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

PACKAGES = ("domain-reranker", "torch", "transformers", "sentence-transformers", "accelerate", "datasets", "faiss-cpu")


def fingerprint(*parts: Any) -> str:
    """sha256 of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def write_json(path: Path, content: Any) -> None:
    """Write JSON so that a reader finds the old file or the new one, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)


def read_json(path: Path) -> Any:
    """Read what `write_json` wrote."""
    return json.loads(path.read_text(encoding="utf-8"))


@dataclass
class Stage:
    """One stage's folder under one fingerprint."""

    folder: Path
    fingerprint: str
    started: float = field(default_factory=time.monotonic)

    @property
    def done(self) -> dict[str, Any] | None:
        """The notes of `finish` where the stage stands complete under this fingerprint, else None."""
        path = self.folder / "done.json"
        notes = read_json(path) if path.is_file() else {}
        return notes if notes.get("fingerprint") == self.fingerprint else None

    def begin(self) -> None:
        """Make the folder ours: another fingerprint's content goes, our own unfinished work stays to be resumed."""
        begun = self.folder / "begun.json"
        if not begun.is_file() or read_json(begun) != self.fingerprint:
            shutil.rmtree(self.folder, ignore_errors=True)
            write_json(begun, self.fingerprint)
        (self.folder / "done.json").unlink(missing_ok=True)
        self.started = time.monotonic()

    def finish(self, **notes: Any) -> None:
        """Declare the stage complete."""
        facts = {
            "fingerprint": self.fingerprint,
            "seconds": round(time.monotonic() - self.started, 1),
            "peak_memory_mib": _peak_memory(),
            "versions": {package: _version(package) for package in PACKAGES},
        }
        write_json(self.folder / "done.json", facts | notes)


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
