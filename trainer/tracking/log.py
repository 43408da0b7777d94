"""Where training numbers go: always `metrics.jsonl`, and Weights & Biases where the recipe asks for it."""

from __future__ import annotations

import json
import math
from pathlib import Path

from trainer.recipe import Recipe
from trainer.runtime.run_folder import remove
from trainer.tracking.weights_and_biases import start


class Log:
    """One line of numbers a step. A resumed run first drops the lines behind its checkpoint, so none stands twice."""

    def __init__(self, folder: Path, recipe: Recipe, resumed_step: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "metrics.jsonl"
        kept = [line for line in self._lines() if _step(line) <= resumed_step] if resumed_step else []
        if self.path.is_dir():
            remove(self.path)
        self.path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        self.wandb = start(folder, recipe, resumed_step > 0) if recipe.track.mode != "off" else None

    def _lines(self) -> list[str]:
        """The whole lines; a kill may have cut the last one short."""
        if not self.path.is_file():
            return []
        return [line for line in self.path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1] if line]

    def write(self, step: int, **numbers: float) -> None:
        """Note numbers under names that say their unit, e.g. pairs_per_second."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **numbers}) + "\n")
        if self.wandb is not None:
            self.wandb.log(numbers, step=step)

    def close(self) -> None:
        """Flush and end the W&B run."""
        if self.wandb is not None:
            self.wandb.finish()


def _step(line: str) -> float:
    """Return the step of a line; infinity where it is damaged, so that it is dropped."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf
