"""The forecast of a run: made before the first stage, shown, and kept beside the real minutes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from rich.filesize import decimal

from trainer.forecast.memory import Memory, memory_of_training, remedies, require_memory
from trainer.forecast.work import Cost, Work
from trainer.runtime import console
from trainer.runtime.run_folder import read_record, write_json

FILE = "forecast.json"  # in the run folder


class Predictable(Protocol):
    """A stage that predicts its own cost."""

    @property
    def folder(self) -> str:
        """Name of the stage's folder."""
        ...

    def forecast(self, work: Work) -> Cost:
        """Return the predicted cost of the stage."""
        ...


@dataclass(frozen=True)
class Forecast:
    """The predicted cost of each remaining stage by its folder, and the memory of training if that remains."""

    costs: dict[str, Cost]
    memory: Memory | None = None
    advice: tuple[str, ...] = ()  # keys that would make the training fit

    @property
    def total(self) -> Cost:
        """The cost of all remaining stages."""
        return sum(self.costs.values(), Cost())


def predict(stages: Iterable[Predictable], work: Work) -> Forecast:
    """Return the forecast of the stages that are not finished.

    The models are measured unless that was done before. Raises MachineError, without loading it, if the base cannot be
    trained in the memory of the device.
    """
    stages = list(stages)
    trains = work.recipe.train.epochs > 0 and any(stage.folder.startswith("train") for stage in stages)
    if trains:
        require_memory(work.recipe)
    costs = {stage.folder: stage.forecast(work) for stage in stages}
    if not trains:
        return Forecast(costs)
    memory = memory_of_training(work)
    return Forecast(costs, memory, () if memory.fits else tuple(remedies(memory, work)))


def show(forecast: Forecast, finished: Iterable[str] = (), *, table: bool) -> None:
    """Print the forecast: as a table with all stages, or as a line; and a warning if the memory does not suffice."""
    if table:
        rows = [[stage, "0.0", "finished"] for stage in finished]
        rows += [[stage, _minutes(cost.seconds), decimal(round(cost.bytes))] for stage, cost in forecast.costs.items()]
        total = forecast.total
        rows.append(["all", _minutes(total.seconds), decimal(round(total.bytes))])
        console.table("Forecast, at this machine's present load", ["stage", "minutes", "disk"], rows)
    else:
        console.stage("forecast", _line(forecast))
    if forecast.memory is None:
        return
    if forecast.memory.fits:
        console.stage("forecast", forecast.memory.sentence)
    else:
        console.warn("forecast", f"{forecast.memory.sentence}; to make it fit: {', or '.join(forecast.advice)}")


def keep(folder: Path, forecast: Forecast) -> None:
    """Write the forecast into the run folder; what was predicted for finished stages remains."""
    path = folder / FILE
    stages = {**_stages(path), **{stage: asdict(cost) for stage, cost in forecast.costs.items()}}
    memory = forecast.memory and asdict(forecast.memory)
    write_json(path, {"stages": stages, "memory": memory})


def read_predicted(folder: Path) -> dict[str, float]:
    """Return the predicted seconds of the stages of a run; empty without a forecast."""
    seconds = {stage: cost.get("seconds") for stage, cost in _stages(folder / FILE).items() if isinstance(cost, dict)}
    return {stage: float(value) for stage, value in seconds.items() if isinstance(value, int | float)}


def _stages(path: Path) -> Mapping[str, dict[str, float]]:
    stages = (read_record(path) or {}).get("stages")
    return stages if isinstance(stages, dict) else {}


def _line(forecast: Forecast) -> str:
    """Return the forecast in one line, with the stages of a tenth of the time and more."""
    total = forecast.total
    long = [(stage, cost.seconds) for stage, cost in forecast.costs.items() if cost.seconds >= total.seconds / 10]
    parts = ", ".join(f"{stage} {_minutes(seconds)}" for stage, seconds in long)
    return f"about {_minutes(total.seconds)} minutes ({parts}); {decimal(round(total.bytes))} on the disk"


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f}"
