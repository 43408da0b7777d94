"""The commits of a run's Hub models, saved in its folder, so that the next start loads the same weights.

A run uses the same commit of a Hub id each time, even after a later upload. If the file is deleted, the next start uses
the newest commits, and the stages that depend on them run again.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from trainer.model_files import references
from trainer.runtime.run_folder import read_record, write_json

FILE = "models.json"


def read_pins(folder: Path) -> dict[str, str]:
    """Return the saved commit of each of a run's Hub ids; empty if the file is missing or damaged."""
    return {str(reference): str(commit) for reference, commit in (read_record(folder / FILE) or {}).items()}


def write_pins(names: Iterable[str], folder: Path) -> None:
    """Save the commits of those references that are Hub ids; writes no file if there are none."""
    known = references.commits()
    pins = {reference: known[reference] for reference in names if reference in known}
    if pins and read_pins(folder) != pins:
        write_json(folder / FILE, pins)
