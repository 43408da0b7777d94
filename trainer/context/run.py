"""The run of a recipe and the interface of its stages: run folder, processes, and results of earlier stages."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeVar

from trainer import evaluation, retriever
from trainer.data import Collection
from trainer.data.generated import with_made_queries
from trainer.errors import RunError
from trainer.forecast import Cost
from trainer.model_files import references
from trainer.model_files.pins import read_pins, write_pins
from trainer.recipe import Mine, Recipe
from trainer.runtime import processes
from trainer.runtime.launch import on_main, start_accelerator
from trainer.runtime.lock import hold
from trainer.runtime.run_folder import StageFolder

if TYPE_CHECKING:
    from accelerate import Accelerator

    from trainer.forecast import Work
    from trainer.retriever import Candidates
    from trainer.runtime.precision import Precision

Result = TypeVar("Result")


@dataclass(frozen=True)
class Notes:
    """The report of a finished stage: one line for the terminal, and values for `done.json`."""

    line: str = ""
    values: dict[str, Any] = field(default_factory=dict)


class Stage(Protocol):
    """One step of a run. It reads files of earlier stages, and writes files to a folder of its own."""

    name: ClassVar[str]
    version: ClassVar[int]
    """Version of the code; raised when the same inputs would now give other files."""
    processes: ClassVar[Literal["all", "main"]]
    """The processes that run the stage; with `main` the others wait."""

    @property
    def folder(self) -> str:
        """Name of the stage's folder in the run folder, and of the stage on the terminal."""
        return self.name

    def is_wanted(self, recipe: Recipe) -> bool:
        """Return whether a run of this recipe has the stage."""
        del recipe
        return True

    def each(self, recipe: Recipe) -> Sequence[Stage]:
        """Return the stage once for each time that a run of this recipe has it."""
        return [self] if self.is_wanted(recipe) else []

    def inputs(self, recipe: Recipe) -> dict[str, Any]:
        """Return the inputs that the result depends on, besides earlier stages: recipe keys with values, file hashes.

        Keys that change time or memory, but not the result, are left out.
        """
        ...

    def run(self, run: Run, folder: Path) -> Notes:
        """Run the stage and write its files to `folder`; after a kill, resume from the files there."""
        ...

    def forecast(self, work: Work) -> Cost:
        """Return the predicted cost of the stage, from counts and speeds; nothing for a stage of seconds."""
        del work
        return Cost()

    def show(self, run: Run) -> None:
        """Print the stage's results, even if it was skipped; most stages have nothing to print."""


@dataclass(frozen=True)
class RoundStage(Stage):
    """A stage that comes once for each round of mining (`mine.rounds`)."""

    round: int = 1

    def folder_of(self, name: str) -> str:
        """Return the folder of a stage in the same round: mine, or mine-2."""
        return name if self.round == 1 else f"{name}-{self.round}"

    @property
    def folder(self) -> str:
        """Name of the stage's folder."""
        return self.folder_of(self.name)

    def is_wanted(self, recipe: Recipe) -> bool:
        """Return whether the recipe has this round."""
        return self.round <= recipe.mine.rounds


class Run:
    """A recipe, its run folder and its stages."""

    def __init__(self, recipe: Recipe, folder: Path, stages: Sequence[Stage]) -> None:
        self.recipe = recipe
        self.folder = folder
        self.stages = [one for stage in stages for one in stage.each(recipe)]
        references.pin(self.on_main(lambda: read_pins(folder)))
        self.records = self.on_main(self._plan)
        references.pin(self.on_main(references.commits))  # the commits that were fingerprinted
        self._notes: dict[str, dict[str, Any]] = {}  # cached notes of finished stages, the same on all processes

    def _plan(self) -> dict[str, StageFolder]:
        """Return the folder of every stage with its inputs, which include those of earlier stages."""
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
        """Devices and processes; created when a stage needs them, so that a finished run does not import torch."""
        return start_accelerator(self.recipe.train.precision)

    @property
    def is_main(self) -> bool:
        """True in the main process, the only one that writes files and prints."""
        return processes.is_main()

    def on_main(self, work: Callable[[], Result]) -> Result:
        """Call `work` in the main process, and return its result in all; with one process torch is not imported."""
        if not processes.several():
            return work()
        return on_main(self.accelerator, work)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the run folder against other runs; raise RunError if another run holds the lock."""
        with ExitStack() as stack:
            self.on_main(lambda: stack.enter_context(hold(self.folder / ".lock", "run")))
            yield

    # Stages.

    def begin(self, stage: Stage) -> None:
        """Prepare the stage's folder, and write the recipe and the commits of its models."""
        write_pins((reference.name for reference in self.recipe.model_references), self.folder)
        self.records[stage.folder].begin(self.recipe.model_dump(mode="json"))

    def remember(self, stage: Stage, notes: dict[str, Any]) -> None:
        """Keep a finished stage's notes, so that the main process can read them while the others wait for it."""
        self._notes[stage.folder] = notes

    def notes(self, name: str) -> dict[str, Any]:
        """Return the notes of a finished stage, the same on all processes; raise RunError if it is not finished."""
        if name not in self._notes:
            notes = self.on_main(lambda: self.records[name].done)
            if notes is None:
                raise RunError(f"{name}: {self.folder / name} is not finished or was changed; run the recipe again")
            self._notes[name] = notes
        return self._notes[name]

    @property
    def trainings(self) -> dict[int, str]:
        """Folder name of the training with each seed, in the last round of mining."""
        seeds = self.recipe.training_seeds
        folders = [stage.folder for stage in self.stages if stage.name == "train"]
        return dict(zip(seeds, folders[-len(seeds) :], strict=True))

    @property
    def last_training(self) -> str:
        """Folder name of the last training stage; with several seeds, of the one that is best on dev."""
        first, *others = self.trainings.values()
        return max(first, *others, key=lambda name: self.notes(name)["best_dev"]) if others else first

    @property
    def exported(self) -> str:
        """Folder name of the stage whose best checkpoint is exported."""
        return "distil" if "distil" in self.records else self.last_training

    def best(self, stage: str | None = None) -> Path:
        """Return the path of the best checkpoint of a training stage, by default the last one."""
        return self.folder / (stage or self.last_training) / "best"

    @property
    def start(self) -> Path:
        """Path of the model before training: the base model, with what was fitted before the first step."""
        return self.best().with_name("start")

    # Data and candidates.

    @property
    def metric(self) -> str:
        """Name of the metric that chooses the checkpoint."""
        return self.recipe.evaluate.metrics[0]

    @property
    def collection(self) -> Collection:
        """The collection, memory-mapped from the folder of the data stage, with the queries of the stage generate."""
        if "generate" in self.records and not (self.folder / "generate" / "done.json").is_file():
            return Collection.open(self.folder / "data")  # for a forecast; not kept, because queries will be added
        return self._whole_collection

    @cached_property
    def _whole_collection(self) -> Collection:
        collection = Collection.open(self.folder / "data")
        return with_made_queries(collection, self.folder / "generate") if "generate" in self.records else collection

    def candidates(self, split: str) -> Candidates:
        """Return the first stage's candidates for a split."""
        return retriever.Candidates.load(self.folder / "retrieve" / f"{split}.npz")

    def default_candidates(self, split: str) -> Candidates | None:
        """Return the untuned first stage's candidates for dev or test; None if tuning changed nothing."""
        path = self.folder / "retrieve" / f"default-{split}.npz"
        return retriever.Candidates.load(path) if path.is_file() else None

    def reranked(self, split: str) -> Candidates:
        """Return the candidates of a split that are reranked: the first `reranker.depth` of each query."""
        return self.candidates(split).top(self.recipe.rerank_depth)

    def candidates_to_mine(self, section: Mine) -> Candidates:
        """Return the train candidates that groups are mined from: lists are those that will be reranked."""
        return self.reranked("train") if section.groups == "lists" else self.candidates("train")

    @property
    def first_stage_dev(self) -> float:
        """Dev score of the first stage in the first metric of the recipe."""
        return evaluation.mean_score(self.collection, "dev", self.candidates("dev"), self.metric)

    # Precision.

    def precision(self, stage: str, use: str, model: Path, measure: Callable[[], float]) -> Precision:
        """Return a model's precision in training, mining or teaching; the final evaluation is in float32."""
        from trainer.runtime.precision import Precisions

        def choose() -> Precision:
            device, measured = self.accelerator.device, self.folder.parent / ".precision.json"
            choices = Precisions(self.recipe.train.precision, device, measured)
            return choices.of(stage, use, references.fingerprint(model), measure)

        return self.on_main(choose)
