"""The commits of a run's Hub models, kept in its folder, so that the next start loads the same weights.

A Hub id means the commit with which the run began, also after somebody uploaded to it. Deleting the file takes the
newest commits, and whatever depends on them is done again.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from trainer.model_files import references
from trainer.runtime.run_folder import read_record, write_json

FILE = "models.json"


def read_pins(folder: Path) -> dict[str, str]:
    """Return the commit of each Hub id that a run began with; none where the file is not there or not whole."""
    return {str(reference): str(commit) for reference, commit in (read_record(folder / FILE) or {}).items()}


def write_pins(names: Iterable[str], folder: Path) -> None:
    """Keep the commits of those references that are Hub ids; nothing is written where none is."""
    known = references.commits()
    pins = {reference: known[reference] for reference in names if reference in known}
    if pins and read_pins(folder) != pins:
        write_json(folder / FILE, pins)
