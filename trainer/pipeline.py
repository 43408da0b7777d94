"""READ THIS FIRST: the one path from a recipe to a measured, exported reranker.

    check -> data -> retrieve -> mine -> train -> distil -> evaluate -> export -> push

Each stage is a file in `trainer/stages/`. With `mine.rounds: 2` mine and train come twice: mine-2 asks the model of the
first round, and train-2 starts from the base again. Distil and push only come where the recipe has the section.

Every stage leaves a folder under runs/NAME/. It is skipped while its files are unchanged and nothing changed that its
result depends on: recipe keys, data, weights and the stages before it, all known before the first model loads. Else it
is done again: the old files move aside, and the terminal names what changed. After a kill the same command goes on.
A lock keeps a second run of the same name out.

Under several processes all of them embed, train and score; the rest is the main process's work.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from trainer.check import check
from trainer.context import Notes, Run, Stage
from trainer.context.result import RunResult
from trainer.errors import NotBetterError, RecipeError, did_you_mean
from trainer.model_files import references
from trainer.model_files.pins import read_pins
from trainer.recipe import Recipe, load_recipe
from trainer.runtime import console
from trainer.runtime.machine import explained
from trainer.stages import gate
from trainer.stages import push as to_hub
from trainer.stages.data import Data, keep_collection
from trainer.stages.distil import Distil
from trainer.stages.evaluate import Evaluate
from trainer.stages.export import Export
from trainer.stages.mine import Mine
from trainer.stages.retrieve import Retrieve
from trainer.stages.train import Train

STAGES: Sequence[Stage] = [
    Data(),
    Retrieve(),
    Mine(),
    Train(),
    Mine(round=2),
    Train(round=2),
    Distil(),
    Evaluate(),
    Export(),
]


@explained
def run(
    recipe: Recipe | Path | str, runs: Path | str = "runs", *, until: str = "export", force: bool = False
) -> RunResult:
    """Carry out a recipe (or its file) up to a stage, and return what it led to.

    Push follows where the recipe has the section and `until` is export. A model that is not shown to be better is not
    pushed, and one that is worse is not exported; with `force` both happen all the same. The result says which it was.
    Raises TrainerError for whatever the user can mend.
    """
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    folder = Path(runs) / recipe.name
    _require_stage(until, recipe)
    recipe = keep_collection(recipe, folder)
    references.pin(read_pins(folder))
    check(recipe, Path(runs), weights=True, pushes=until == "export", keep=True)
    opened = open_run(recipe, runs)
    last = max(place for place, stage in enumerate(opened.stages) if stage.name == until)
    refused = None
    with opened.locked():
        try:
            for stage in opened.stages[: last + 1]:
                carry_out(opened, stage, force)
            _report_stale(opened, opened.stages[last + 1 :])
            if until == "export":
                _deliver(opened, force)
        except NotBetterError as error:
            refused = error
    return RunResult(folder.absolute(), refused)  # it is read later, perhaps from another working directory


def open_run(recipe: Recipe, runs: Path | str = "runs") -> Run:
    """Return the run of a recipe, with everything that its stages depend on; nothing is computed yet."""
    folder = Path(runs) / recipe.name
    _refuse_judgements_in_a_stage(recipe, folder)
    return Run(recipe, folder, STAGES)


def carry_out(run: Run, stage: Stage, force: bool = False) -> None:
    """Do one stage, or report that its files are up to date."""
    record = run.records[stage.folder]
    notes = run.on_main(lambda: record.done)
    if notes is not None:
        run.on_main(record.tidy)
        console.stage(stage.folder, notes["said"], note="(up to date)")
    else:
        if stage.name == "export":
            gate.refuse_worse(run, force)
        run.on_main(lambda: run.begin(stage))
        made = Notes()
        if run.is_main or stage.processes == "all":
            made = stage.run(run, record.folder)
        notes = run.on_main(lambda: record.finish(made.line, **made.values))
        console.stage(stage.folder, notes["said"])
    stage.show(run)


@explained
def push(recipe: Recipe, runs: Path | str = "runs", *, dry_run: bool = False, force: bool = False) -> None:
    """Upload what export left; with `dry_run` only list it. Raises NotBetterError for what may not leave."""
    opened = open_run(recipe, runs)
    to_hub.require_section(opened)
    with opened.locked() if opened.folder.is_dir() else nullcontext():
        if opened.on_main(lambda: opened.records["evaluate"].done) is not None:
            gate.refuse_worse(opened, force)
        to_hub.require_export(opened)
        gate.require_better(opened, force)
        to_hub.push(opened, dry_run)


def _deliver(run: Run, force: bool) -> None:
    """End a whole run: raise NotBetterError where the verdict says so, else push where the recipe has the section."""
    gate.require_better(run, force)
    if run.recipe.push is not None:
        to_hub.push(run, dry_run=False)


def _require_stage(until: str, recipe: Recipe) -> None:
    names = list(dict.fromkeys(stage.name for stage in STAGES))
    if until not in names:
        raise RecipeError(f"until: {until!r} is no stage{did_you_mean(until, names)}")
    if until == "distil" and recipe.distil is None:
        raise RecipeError("distil: the recipe has no distil section; add `distil: {}` for its defaults")


def _report_stale(run: Run, stages: Sequence[Stage]) -> None:
    """Warn of later stages that are finished, but not with this recipe's inputs."""
    records = [run.records[stage.folder] for stage in stages]
    stale = [one.folder.name for one in records if (one.folder / "done.json").exists() and one.done is None]
    if stale:
        console.warn("run", f"not done again yet, still of other inputs (their recipe.json): {', '.join(stale)}")


def _refuse_judgements_in_a_stage(recipe: Recipe, folder: Path) -> None:
    """Raise RecipeError where `data.judgements` lies where a stage would move it away."""
    path = recipe.data.judgements
    if path is not None and folder.resolve() in path.resolve().parents and path.resolve().parent != folder.resolve():
        raise RecipeError(
            f"data.judgements: {path} lies in the folder of a stage, which moves aside when it is done again; copy it "
            "to another folder, and name the copy"
        )
