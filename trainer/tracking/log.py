"""The log of training metrics: always `metrics.jsonl`, and Weights & Biases if the recipe sets `track.mode`."""

from __future__ import annotations

import json
import math
from pathlib import Path

from trainer.recipe import Recipe
from trainer.runtime.run_folder import remove
from trainer.tracking.weights_and_biases import start


class Log:
    """One line of metrics per step; a resumed run first drops the lines after its checkpoint, so no step repeats."""

    def __init__(self, folder: Path, recipe: Recipe, resumed_step: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "metrics.jsonl"
        kept = [line for line in self._lines() if _step(line) <= resumed_step] if resumed_step else []
        if self.path.is_dir():
            remove(self.path)
        self.path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        self.wandb = start(folder, recipe, resumed_step > 0) if recipe.track.mode != "off" else None

    def _lines(self) -> list[str]:
        """Return the complete lines; a kill may have truncated the last one."""
        if not self.path.is_file():
            return []
        return [line for line in self.path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1] if line]

    def write(self, step: int, **numbers: float) -> None:
        """Log numbers under names that state their unit, e.g. pairs_per_second."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **numbers}) + "\n")
        if self.wandb is not None:
            self.wandb.log(numbers, step=step)

    def close(self) -> None:
        """Flush and end the W&B run."""
        if self.wandb is not None:
            self.wandb.finish()


def _step(line: str) -> float:
    """Return the step of a line; infinity if the line is damaged, so that it is dropped."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf
