"""What a killed run goes on from: everything that the next step depends on, whole or not at all."""

from __future__ import annotations

import math
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

from accelerate import Accelerator

from trainer import console
from trainer.errors import RunError
from trainer.precision import Precision
from trainer.runs import read_json, write_json
from trainer.train.devices import is_sharded


@dataclass
class Progress:
    """Where training stands; all that a resumed run needs beside weights, optimizer and random states."""

    step: int = 0
    best_score: float = -math.inf
    best_step: int = 0
    curve: list[tuple[int, float]] = field(default_factory=list)
    planned: int = 0  # steps, if nothing ends it early
    precision: Precision = "fp32"  # what the first start chose; a resumed run keeps it

    def stalled(self, patience: int | None) -> bool:
        """Whether so many evaluations in a row brought no new best."""
        return patience is not None and sum(step > self.best_step for step, _ in self.curve) >= patience

    @property
    def ending(self) -> str:
        """How an early end is told; nothing where all steps were done."""
        if self.step == self.planned:
            return ""
        return f"stopped at step {self.step} of {self.planned}: no better since step {self.best_step}"


def save_checkpoint(progress: Progress, accelerator: Accelerator, folder: Path) -> None:
    """Save all of it; the rename makes it count, then the one before it goes."""
    partial = folder / "checkpoint.partial"
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(partial))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        made_by = {"processes": accelerator.num_processes, "sharded": is_sharded(accelerator)}
        write_json(partial / "progress.json", asdict(progress) | made_by)
        partial.replace(folder / f"checkpoint-{progress.step:07d}")
        for older in sorted(folder.glob("checkpoint-*"))[:-1]:
            shutil.rmtree(older)
    accelerator.wait_for_everyone()


def last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint, where there is one."""
    return max(folder.glob("checkpoint-*"), default=None)


def precision_of(checkpoint: Path) -> Precision:
    """Return the precision that a checkpoint was trained in."""
    return read_json(checkpoint / "progress.json").get("precision", "fp32")


def resume(checkpoint: Path, accelerator: Accelerator) -> Progress:
    """Take weights, optimizer and random numbers from a checkpoint; the rest is in its progress.json."""
    notes = read_json(checkpoint / "progress.json")
    processes, sharded = notes.pop("processes"), notes.pop("sharded", False)
    if sharded != is_sharded(accelerator):
        before, now = ("with FSDP", "without") if sharded else ("without FSDP", "with")
        raise RunError(
            f"{checkpoint.parent.name}: {checkpoint} was made {before}, this is {now}, and neither reads the other's; "
            f"go on as it was started, or delete {checkpoint.parent} to train anew"
        )
    accelerator.load_state(str(checkpoint))
    notes["curve"] = [(step, score) for step, score in notes["curve"]]
    progress = Progress(**notes)
    console.stage(checkpoint.parent.name, f"resumed at step {progress.step} from {checkpoint.name}")
    if processes != accelerator.num_processes:
        message = f"{processes} processes before, {accelerator.num_processes} now: same steps, but not the same bits"
        console.warn(checkpoint.parent.name, message)
    return progress
