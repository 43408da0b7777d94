"""Atomic training checkpoints with the best model so far, from which a killed run resumes."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from trainer.errors import RunError
from trainer.runtime import console, processes, verify
from trainer.runtime.launch import on_main
from trainer.runtime.precision import Precision
from trainer.runtime.run_folder import begun_fingerprint, read_json, read_record, remove, write_json
from trainer.training.parallel import is_sharded

FITTED = "fitted.json"  # candidate lists to which a head or a mixture was fitted, with held-out scores
START = "start"  # folder of the model before the first step: the base with what was fitted
TRAINED = "trained"  # folder of the best model after the first step


@dataclass
class Progress:
    """The state of a training besides weights, optimizer and random states, as saved in progress.json.

    `best_score` and `best_step` are those of the best model after the first step; `curve` are (step, dev score), from
    step 0.
    """

    step: int = 0
    best_score: float = -math.inf
    best_step: int = 0
    curve: list[tuple[int, float]] = field(default_factory=list)
    planned: int = 0  # number of steps without early stopping
    precision: Precision = "fp32"  # chosen at the first start; a resumed run continues in it
    first_stage_weight: float = 0.0  # of the first stage's scores in the loss, fitted with the head

    def stalled(self, patience: int | None) -> bool:
        """Return whether the last `patience` evaluations brought no new best score."""
        if patience is None or not self.curve:
            return False
        scores = [score for _, score in self.curve]
        return len(scores) - 1 - scores.index(max(scores)) >= patience

    @property
    def ending(self) -> str:
        """The message about early stopping; empty if all steps were done."""
        if self.step == self.planned:
            return ""
        return f"stopped at step {self.step} of {self.planned}: no improvement since step {self.best_step}"


def pending_best(folder: Path, step: int) -> Path:
    """Return the folder of a new best model until a checkpoint records it."""
    return folder / f".best-{step:07d}"


def commit_best(folder: Path, step: int) -> None:
    """Move the best model of `step` to `folder/trained`, and delete new ones that no checkpoint recorded.

    Whenever the process is killed, the best model of the last checkpoint is in `trained` or can be moved there.
    """
    best = pending_best(folder, step)
    if best.is_dir():
        remove(folder / TRAINED)
        best.rename(folder / TRAINED)
    for unrecorded in folder.glob(".best-*"):
        remove(unrecorded)


def save_checkpoint(progress: Progress, accelerator: Accelerator, folder: Path) -> None:
    """Save a checkpoint atomically, by a rename, and delete the previous one and its best model."""
    partial = folder / "checkpoint.partial"
    if processes.is_main():
        remove(partial)
        partial.mkdir(parents=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(partial))
    accelerator.wait_for_everyone()
    if processes.is_main():
        _complete(partial, progress, accelerator, folder)
    accelerator.wait_for_everyone()


def _complete(partial: Path, progress: Progress, accelerator: Accelerator, folder: Path) -> None:
    """Write progress.json with hashes of all files, rename the checkpoint, and delete the previous one."""
    pending = pending_best(folder, progress.best_step)
    best = pending if pending.is_dir() else folder / TRAINED
    files = {
        "fingerprint": begun_fingerprint(folder),
        "processes": accelerator.num_processes,
        "sharded": is_sharded(accelerator),
        "files": verify.record(partial, files_below(partial)),
        "best": verify.record(best, files_below(best)),
        "before": _before_training(folder),
    }
    write_json(partial / "progress.json", asdict(progress) | files)
    checkpoint = folder / f"checkpoint-{progress.step:07d}"
    remove(checkpoint)
    partial.replace(checkpoint)
    commit_best(folder, progress.best_step)
    for path in folder.glob("checkpoint-*"):
        if path != checkpoint:
            remove(path)


def _before_training(folder: Path) -> dict[str, Any]:
    """Return the record of the files written before the first step, copied from the previous checkpoint if any."""
    for checkpoint in folder.glob("checkpoint-*"):
        if before := (read_record(checkpoint / "progress.json") or {}).get("before"):
            return before
    return verify.record(folder, [*files_below(folder / START), *folder.glob(FITTED)])


def files_below(folder: Path) -> list[Path]:
    """Return all files below a folder, sorted by path."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def last_checkpoint(folder: Path) -> Path | None:
    """Return the newest valid checkpoint; damaged ones and those of other inputs are deleted with a warning."""
    for checkpoint in sorted(folder.glob("checkpoint-*"), reverse=True):
        fault = _fault(checkpoint, folder)
        if not fault:
            return checkpoint
        console.warn(folder.name, f"{fault}; {checkpoint.name} is deleted, and training does not resume from it")
        remove(checkpoint)
    return None


def _fault(checkpoint: Path, folder: Path) -> str:
    """Return why training cannot resume from a checkpoint and the best model it records, or an empty string."""
    path = checkpoint / "progress.json"
    notes = read_record(path) or {}
    if not notes.keys() >= {"step", "best_step", "fingerprint", "files", "best", "before"}:
        return f"{path} is missing or damaged"
    if notes["fingerprint"] != begun_fingerprint(folder):
        return f"{checkpoint} was made with other inputs"
    commit_best(folder, notes["best_step"])
    return (
        verify.difference(checkpoint, notes["files"])
        or verify.difference(folder / TRAINED, notes["best"])
        or verify.difference(folder, notes["before"])
    )


def precision_of(checkpoint: Path) -> Precision:
    """Return the precision in which a checkpoint was trained."""
    return read_json(checkpoint / "progress.json").get("precision", "fp32")


def resume(checkpoint: Path, accelerator: Accelerator) -> Progress:
    """Load weights, optimizer and random states of a checkpoint, and return its progress.

    Raises RunError if the checkpoint was written with FSDP and this run is without, or the other way round.
    """
    notes = on_main(accelerator, lambda: read_json(checkpoint / "progress.json"))
    processes, sharded = notes["processes"], notes["sharded"]
    if sharded != is_sharded(accelerator):
        before, now = ("with FSDP", "without") if sharded else ("without FSDP", "with")
        raise RunError(
            f"{checkpoint.parent.name}: {checkpoint} was made {before}, this is {now}, and the formats differ; "
            f"resume as it was started, or delete {checkpoint.parent} to train anew"
        )
    accelerator.load_state(str(checkpoint))
    progress = Progress(**{entry.name: notes[entry.name] for entry in fields(Progress)})
    progress.curve = [(step, score) for step, score in notes["curve"]]
    console.stage(checkpoint.parent.name, f"resumed at step {progress.step} from {checkpoint.name}")
    if processes != accelerator.num_processes:
        change = f"{processes} processes before, {accelerator.num_processes} now"
        message = f"{change}: the same steps, but results may differ in the last bits"
        console.warn(checkpoint.parent.name, message)
    return progress
