"""A run and its stages: the recipe, the run folder and the processes, and what earlier stages left there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeVar

from trainer.data import Collection
from trainer.errors import RunError
from trainer.model_files import references
from trainer.model_files.pins import read_pins, write_pins
from trainer.recipe import Recipe
from trainer.runtime import processes
from trainer.runtime.lock import hold
from trainer.runtime.run_folder import StageFolder

if TYPE_CHECKING:
    from accelerate import Accelerator

    from trainer.retriever import Candidates
    from trainer.runtime.precision import Precision

Result = TypeVar("Result")


@dataclass(frozen=True)
class Notes:
    """What a finished stage reports: one line for the terminal, and values for `done.json`."""

    line: str = ""
    values: dict[str, Any] = field(default_factory=dict)


class Stage(Protocol):
    """One step of a run. It reads what earlier stages left, and leaves files in a folder of its own."""

    name: ClassVar[str]
    version: ClassVar[int]
    """Raised when the same inputs would now leave something else."""
    processes: ClassVar[Literal["all", "main"]]
    """Who works; with `main` the other processes wait."""

    @property
    def folder(self) -> str:
        """The name of the stage's folder in the run folder, which also names the stage on the terminal."""
        return self.name

    def is_wanted(self, recipe: Recipe) -> bool:
        """Return whether a run of this recipe has the stage."""
        del recipe
        return True

    def inputs(self, recipe: Recipe) -> dict[str, Any]:
        """Return what the result depends on beside the stages before: recipe keys with values, hashes of files.

        Keys that change time or memory, but not the result, are left out.
        """
        ...

    def run(self, run: Run, folder: Path) -> Notes:
        """Do the work and leave its files in `folder`; after a kill, go on from what the folder holds."""
        ...

    def show(self, run: Run) -> None:
        """Show what the stage left, also when it was up to date; most stages have nothing to show."""


class Run:
    """One recipe in its run folder, with the stages that it has."""

    def __init__(self, recipe: Recipe, folder: Path, stages: Sequence[Stage]) -> None:
        self.recipe = recipe
        self.folder = folder
        self.stages = [stage for stage in stages if stage.is_wanted(recipe)]
        references.pin(self.on_main(lambda: read_pins(folder)))
        self.records = self.on_main(self._plan)
        references.pin(self.on_main(references.commits))  # those that were fingerprinted
        self._notes: dict[str, dict[str, Any]] = {}  # of finished stages, the same on all processes

    def _plan(self) -> dict[str, StageFolder]:
        """Return the folder of every stage with its inputs, which include those of the stages before."""
        records: dict[str, StageFolder] = {}
        known: dict[str, Any] = {}
        previous = None
        for stage in self.stages:
            known |= stage.inputs(self.recipe) | {f"the code of {stage.name}": stage.version}
            previous = records[stage.folder] = StageFolder.of(self.folder / stage.folder, known, previous)
        return records

    # Processes.

    @cached_property
    def accelerator(self) -> Accelerator:
        """Devices and processes; made when the first stage has work to do, so that a finished run starts no torch."""
        from trainer.runtime.launch import start_accelerator

        return start_accelerator(self.recipe.train.precision)

    @property
    def is_main(self) -> bool:
        """Whether this process is the main one, which alone writes and prints."""
        return processes.is_main()

    def on_main(self, work: Callable[[], Result]) -> Result:
        """Return what `work` returns on the main process; a single process starts no torch for that."""
        if not processes.several():
            return work()
        from trainer.runtime.launch import on_main

        return on_main(self.accelerator, work)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other runs out of the run folder; raises RunError where one is using it."""
        with ExitStack() as held:
            self.on_main(lambda: held.enter_context(hold(self.folder / ".lock", "run")))
            yield

    # Stages.

    def begin(self, stage: Stage) -> None:
        """Prepare the stage's folder, and note the recipe and the commits of its models."""
        write_pins((reference.name for reference in self.recipe.model_references), self.folder)
        self.records[stage.folder].begin(self.recipe.model_dump(mode="json"))

    def remember(self, stage: Stage, notes: dict[str, Any]) -> None:
        """Keep a finished stage's notes, so that the main process can read them while the others wait for it."""
        self._notes[stage.folder] = notes

    def notes(self, name: str) -> dict[str, Any]:
        """Return the notes of a finished stage, the same on all processes; raises RunError where it is not finished."""
        if name not in self._notes:
            notes = self.on_main(lambda: self.records[name].done)
            if notes is None:
                raise RunError(f"{name}: {self.folder / name} is not finished or was changed; run the recipe again")
            self._notes[name] = notes
        return self._notes[name]

    @property
    def last_training(self) -> str:
        """The folder of the last training stage."""
        return "train-2" if "train-2" in self.records else "train"

    @property
    def exported(self) -> str:
        """The folder of the stage whose best checkpoint leaves."""
        return "distil" if "distil" in self.records else self.last_training

    def best(self, stage: str | None = None) -> Path:
        """The best checkpoint of a training stage, of the last one unless it is named."""
        return self.folder / (stage or self.last_training) / "best"

    @property
    def start(self) -> Path:
        """The model before training: the base, its head fitted where it is new."""
        return self.best().with_name("start")

    # Data and candidates.

    @property
    def metric(self) -> str:
        """The metric that chooses the checkpoint."""
        return self.recipe.evaluate.metrics[0]

    @cached_property
    def collection(self) -> Collection:
        """The checked collection, mapped from the data stage's folder."""
        return Collection.open(self.folder / "data")

    def candidates(self, split: str) -> Candidates:
        """Return the first stage's candidates for a split."""
        from trainer.retriever import Candidates

        return Candidates.load(self.folder / "retrieve" / f"{split}.npz")

    def default_candidates(self, split: str) -> Candidates | None:
        """Return the candidates of the untuned first stage for dev or test; None where tuning changed nothing."""
        from trainer.retriever import Candidates

        path = self.folder / "retrieve" / f"default-{split}.npz"
        return Candidates.load(path) if path.is_file() else None

    def reranked(self, split: str) -> Candidates:
        """Return the candidates of a split that are reranked and measured."""
        return self.candidates(split).top(self.recipe.rerank_depth)

    @property
    def first_stage_dev(self) -> float:
        """The dev score of the first stage, in the metric that chooses now."""
        from trainer.evaluation.two_stage import mean_score

        return mean_score(self.collection, "dev", self.candidates("dev"), self.metric)

    # Precision.

    def precision(self, stage: str, use: str, model: Path, measure: Callable[[], float]) -> Precision:
        """Return the precision that a model trains, mines or teaches in; what is measured at the end is float32."""
        from trainer.runtime.precision import Precisions

        def choose() -> Precision:
            device, measured = self.accelerator.device, self.folder.parent / ".precision.json"
            choices = Precisions(self.recipe.train.precision, device, measured)
            return choices.of(stage, use, references.fingerprint(model), measure)

        return self.on_main(choose)
