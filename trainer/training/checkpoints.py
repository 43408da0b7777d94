"""Atomic checkpoints of a training, with the best model so far, that a killed run resumes from."""

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

FITTED = "fitted.json"  # what a fresh head was fitted to
START = "start"  # the folder of the model before the first step: the base, its head fitted
TRAINED = "trained"  # the folder of the best checkpoint after it


@dataclass
class Progress:
    """The state of a training that a resumed run needs besides weights, optimizer and random states.

    `best_score` and `best_step` are those of the best checkpoint after the first step; `curve` begins with step 0.
    """

    step: int = 0
    best_score: float = -math.inf
    best_step: int = 0
    curve: list[tuple[int, float]] = field(default_factory=list)
    planned: int = 0  # steps, if nothing ends it early
    precision: Precision = "fp32"  # what the first start chose; a resumed run keeps it
    first_stage_weight: float = 0.0  # beside the model's scores in the loss, as it was fitted with the head

    def stalled(self, patience: int | None) -> bool:
        """Whether so many evaluations in a row brought no new best."""
        if patience is None or not self.curve:
            return False
        scores = [score for _, score in self.curve]
        return len(scores) - 1 - scores.index(max(scores)) >= patience

    @property
    def ending(self) -> str:
        """How an early end is told; nothing where all steps were done."""
        if self.step == self.planned:
            return ""
        return f"stopped at step {self.step} of {self.planned}: no better since step {self.best_step}"


def unsettled_best(folder: Path, step: int) -> Path:
    """Return where the best model of a step lies until a checkpoint knows of it."""
    return folder / f".best-{step:07d}"


def settle_best(folder: Path, step: int) -> None:
    """Make the best model of `step` the one in `folder/trained`, and delete those that no checkpoint knows of.

    A kill at any moment leaves the best model that the last checkpoint knows of: in `trained`, or still to be moved.
    """
    best = unsettled_best(folder, step)
    if best.is_dir():
        remove(folder / TRAINED)
        best.rename(folder / TRAINED)
    for unknown in folder.glob(".best-*"):
        remove(unknown)


def save_checkpoint(progress: Progress, accelerator: Accelerator, folder: Path) -> None:
    """Save all of it; the rename makes it count, then the one before it and its best model go."""
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
    """Write what the checkpoint belongs to and consists of, rename it, and delete what it replaces."""
    unsettled = unsettled_best(folder, progress.best_step)
    best = unsettled if unsettled.is_dir() else folder / TRAINED
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
    settle_best(folder, progress.best_step)
    for path in folder.glob("checkpoint-*"):
        if path != checkpoint:
            remove(path)


def _before_training(folder: Path) -> dict[str, Any]:
    """Return the record of what was written before the first step; it is made once and handed on."""
    for checkpoint in folder.glob("checkpoint-*"):
        if before := (read_record(checkpoint / "progress.json") or {}).get("before"):
            return before
    return verify.record(folder, [*files_below(folder / START), *folder.glob(FITTED)])


def files_below(folder: Path) -> list[Path]:
    """Return all files of a folder, in the order of their names."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def last_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint of this stage; one that is damaged or not of this stage is deleted, with a word."""
    for checkpoint in sorted(folder.glob("checkpoint-*"), reverse=True):
        fault = _fault(checkpoint, folder)
        if not fault:
            return checkpoint
        console.warn(folder.name, f"{fault}; {checkpoint.name} is deleted, and training does not go on from it")
        remove(checkpoint)
    return None


def _fault(checkpoint: Path, folder: Path) -> str:
    """Return in words why training cannot go on from a checkpoint and the best model it knows of, or nothing."""
    path = checkpoint / "progress.json"
    notes = read_record(path) or {}
    if not notes.keys() >= {"step", "best_step", "fingerprint", "files", "best", "before"}:
        return f"{path} is missing or damaged"
    if notes["fingerprint"] != begun_fingerprint(folder):
        return f"{checkpoint} was made with other inputs"
    settle_best(folder, notes["best_step"])
    return (
        verify.difference(checkpoint, notes["files"])
        or verify.difference(folder / TRAINED, notes["best"])
        or verify.difference(folder, notes["before"])
    )


def precision_of(checkpoint: Path) -> Precision:
    """Return the precision that a checkpoint was trained in."""
    return read_json(checkpoint / "progress.json").get("precision", "fp32")


def resume(checkpoint: Path, accelerator: Accelerator) -> Progress:
    """Take weights, optimizer and random numbers from a checkpoint; the rest is in its progress.json."""
    notes = on_main(accelerator, lambda: read_json(checkpoint / "progress.json"))
    processes, sharded = notes["processes"], notes["sharded"]
    if sharded != is_sharded(accelerator):
        before, now = ("with FSDP", "without") if sharded else ("without FSDP", "with")
        raise RunError(
            f"{checkpoint.parent.name}: {checkpoint} was made {before}, this is {now}, and neither reads the other's; "
            f"go on as it was started, or delete {checkpoint.parent} to train anew"
        )
    accelerator.load_state(str(checkpoint))
    progress = Progress(**{entry.name: notes[entry.name] for entry in fields(Progress)})
    progress.curve = [(step, score) for step, score in notes["curve"]]
    console.stage(checkpoint.parent.name, f"resumed at step {progress.step} from {checkpoint.name}")
    if processes != accelerator.num_processes:
        message = f"{processes} processes before, {accelerator.num_processes} now: same steps, but not the same bits"
        console.warn(checkpoint.parent.name, message)
    return progress
