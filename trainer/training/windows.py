"""The windows that training reads: of each long document the best one before the first step.

Relevant and other documents are read alike. If only the relevant ones had their best window, a model could tell them
apart by that; and all windows would be several times the work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from accelerate import Accelerator

from trainer.data.groups import Group
from trainer.model import Reranker, TokenizedCollection, best_window_of
from trainer.model.scoring import Row
from trainer.runtime import console
from trainer.runtime.launch import on_main
from trainer.runtime.run_folder import read_record, write_json

FILE = "windows.json"  # in the folder of the training stage


def choose_windows(
    chooser: Reranker,
    tokenized: TokenizedCollection,
    groups: Sequence[Group],
    known: Mapping[Row, int],
    accelerator: Accelerator,
    folder: Path,
) -> dict[Row, int]:
    """Return the best window's index by query row and document row, of all documents with several windows.

    The choices are written to the folder as windows.json, and read from there when a training is resumed. `known` are
    choices from the fit of a head; the chooser scores the windows of the other documents.
    """
    if (recorded := on_main(accelerator, lambda: _read(folder))) is not None:
        return recorded
    rows = list(dict.fromkeys((group.query, document) for group in groups for document in group.documents))
    left = [row for row in rows if row not in known]
    scored = best_window_of(chooser, tokenized, left, accelerator, note="windows")
    chosen = {row: known[row] for row in rows if row in known} | scored
    on_main(accelerator, lambda: _write(chosen, folder))
    later = sum(index > 0 for index in chosen.values())
    console.stage(
        folder.name,
        f"{len(chosen)} of {len(rows)} documents have several windows; the best one is not the first for {later}",
    )
    return chosen


def _write(chosen: Mapping[Row, int], folder: Path) -> None:
    """Write {query row: {document row: index}}."""
    content: dict[int, dict[int, int]] = {}
    for (query, document), index in chosen.items():
        content.setdefault(query, {})[document] = index
    write_json(folder / FILE, content)


def _read(folder: Path) -> dict[Row, int] | None:
    """Return the choices that `_write` wrote; None if there are none."""
    content = read_record(folder / FILE)
    if content is None:
        return None
    return {(int(query), int(row)): index for query, rows in content.items() for row, index in rows.items()}
