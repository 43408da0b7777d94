"""READ THIS FIRST: run a recipe, stage by stage, up to an evaluated and exported reranker.

    check -> data -> generate -> retrieve -> mine -> train -> distil -> guard -> evaluate -> judge -> export -> push

Each stage is a file in `trainer/stages/`. With `mine.rounds: 2` mine and train run twice: mine-2 uses the model of the
first round as its teacher, and train-2 starts from the base model again. With `train.seeds` the last training runs once
for each seed. Generate, distil and push only run if the recipe has the section, guard and judge only with the key of
`evaluate`.

Every stage writes a folder under runs/NAME/. A finished stage is skipped while its files and its inputs are unchanged:
recipe keys, data, weights and the stages before it, all known before the first model loads. Otherwise it is run again:
its old folder is moved aside, and the terminal lists what changed. After a kill the same command resumes the run. A
lock prevents a second run of the same name at the same time.

With several processes all of them embed, train and score; the main process alone does everything else.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from trainer import retriever
from trainer.check import check
from trainer.context import Notes, Run, Stage
from trainer.context.result import RunResult
from trainer.data import Summary
from trainer.errors import NotBetterError, RecipeError, did_you_mean
from trainer.forecast import Forecast, Speeds, Work, predict
from trainer.forecast import keep as keep_forecast
from trainer.forecast import show as show_forecast
from trainer.model_files import references
from trainer.model_files.pins import read_pins
from trainer.recipe import Recipe, load_recipe
from trainer.runtime import console
from trainer.runtime.machine import EMBEDDINGS, explained
from trainer.stages import gate
from trainer.stages import push as to_hub
from trainer.stages.data import Data, keep_collection
from trainer.stages.distil import Distil
from trainer.stages.evaluate import Evaluate
from trainer.stages.export import Export
from trainer.stages.generate import Generate
from trainer.stages.guard import Guard
from trainer.stages.judge import Judge
from trainer.stages.mine import Mine
from trainer.stages.retrieve import Retrieve
from trainer.stages.train import Train

STAGES: Sequence[Stage] = [
    Data(),
    Generate(),
    Retrieve(),
    Mine(),
    Train(),
    Mine(round=2),
    Train(round=2),
    Distil(),
    Guard(),
    Evaluate(),
    Judge(),
    Export(),
]
PUSH = "push"  # the value of `until` for a complete run


@explained
def run(recipe: Recipe | Path | str, runs: Path | str = "runs", *, until: str = PUSH, force: bool = False) -> RunResult:
    """Run a recipe (or a recipe file) up to a stage, and return its result.

    The model is uploaded only if the recipe has the section `push` and `until` is push, as it is by default. A model
    that is worse on dev is not exported, and one that is not shown to be better is not pushed, unless `force` is set;
    the result holds the error. Raise TrainerError for problems that the user can fix.
    """
    recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    folder = Path(runs) / recipe.name
    require_stage(until, recipe)
    recipe = keep_collection(recipe, folder)
    references.pin(read_pins(folder))
    summary = check(recipe, Path(runs), weights=True, pushes=until == PUSH, keep=True)
    opened = open_run(recipe, runs)
    last = max(index for index, stage in enumerate(opened.stages) if until in (stage.name, PUSH))
    refused = None
    with opened.locked():
        try:
            opened.on_main(lambda: _forecast(opened, opened.stages[: last + 1], summary))
            for stage in opened.stages[: last + 1]:
                run_stage(opened, stage, force)
            _report_stale(opened, opened.stages[last + 1 :])
            if until in ("export", PUSH):
                gate.require_better(opened, force)
            if until == PUSH and recipe.push is not None:
                to_hub.upload(opened, dry_run=False)
        except NotBetterError as error:
            refused = error
    return RunResult(folder.absolute(), refused)  # the working directory may change before the result is read


def open_run(recipe: Recipe, runs: Path | str = "runs") -> Run:
    """Return the run of a recipe with the inputs of all stages; no stage runs yet."""
    folder = Path(runs) / recipe.name
    _refuse_judgements_in_a_stage(recipe, folder)
    return Run(recipe, folder, STAGES)


def forecast(run: Run, stages: Sequence[Stage], summary: Summary) -> Forecast | None:
    """Return the forecast of those of the stages that are not finished, None if all are."""
    left = [stage for stage in stages if run.records[stage.folder].done is None]
    if not left:
        return None
    runs, names = run.folder.parent, {stage.name for stage in left}
    searches = "retrieve" in names and "data" not in names  # else the collection is missing, or not as it was left
    cache = runs / EMBEDDINGS
    embedded = retriever.embedded_share(run.recipe.retriever, run.collection, cache) if searches else 0.0
    return predict(left, Work(run.recipe, summary, Speeds(run.recipe, summary, runs), embedded))


def _forecast(run: Run, stages: Sequence[Stage], summary: Summary) -> None:
    """Print the forecast of a run and keep it."""
    if (made := forecast(run, stages, summary)) is not None:
        show_forecast(made, table=False)
        keep_forecast(run.folder, made)


def run_stage(run: Run, stage: Stage, force: bool = False) -> None:
    """Run one stage, or report that its files are up to date."""
    record = run.records[stage.folder]
    notes = run.on_main(lambda: record.done)
    if notes is not None:
        run.on_main(record.tidy)
        console.stage(stage.folder, notes["said"], note="(up to date)")
    else:
        if stage.name == "export":
            gate.refuse_worse(run, force)
        run.on_main(lambda: run.begin(stage))
        result = Notes()
        if run.is_main or stage.processes == "all":
            result = stage.run(run, record.folder)
        notes = run.on_main(lambda: record.finish(result.line, **result.values))
        console.stage(stage.folder, notes["said"])
    run.remember(stage, notes)
    stage.show(run)


@explained
def push(recipe: Recipe | Run, runs: Path | str = "runs", *, dry_run: bool = False, force: bool = False) -> None:
    """Upload the exported model of a recipe or an opened run; with `dry_run` only list its files.

    Raise NotBetterError if the model does not pass the release gate, unless `force` is set.
    """
    opened = recipe if isinstance(recipe, Run) else open_run(recipe, runs)
    to_hub.require_section(opened)
    with opened.locked() if opened.folder.is_dir() else nullcontext():
        if opened.on_main(lambda: opened.records["evaluate"].done) is not None:
            gate.refuse_worse(opened, force)
        to_hub.require_export(opened)
        gate.require_better(opened, force)
        to_hub.upload(opened, dry_run)


def stage_names() -> list[str]:
    """Return the values of `until`."""
    return [*dict.fromkeys(stage.name for stage in STAGES), PUSH]


def require_stage(until: str, recipe: Recipe) -> None:
    """Raise RecipeError if there is no such stage, or the recipe lacks its section."""
    names = stage_names()
    if until not in names:
        raise RecipeError(
            f"until: {until!r} is not a stage{did_you_mean(until, names)}; the stages are {', '.join(names)}"
        )
    if until == "judge" and recipe.evaluate.judge is None:
        raise RecipeError("evaluate.judge: the recipe names no judge; add `judge: chat:MODEL@URL` to evaluate")
    if until == "distil" and recipe.distil is None:
        raise RecipeError("distil: the recipe has no distil section; add `distil: {}` for its defaults")
    if until == "generate" and recipe.generate is None:
        raise RecipeError(
            "generate: the recipe has no generate section; add `generate: {model: chat:MODEL@URL}`, or extract"
        )


def _report_stale(run: Run, stages: Sequence[Stage]) -> None:
    """Warn about later stages whose results were made from other inputs than this recipe's."""
    records = [run.records[stage.folder] for stage in stages]
    stale = [one.folder.name for one in records if (one.folder / "done.json").exists() and one.done is None]
    if stale:
        console.warn("run", f"out of date, made from other inputs (see recipe.json in each): {', '.join(stale)}")


def _refuse_judgements_in_a_stage(recipe: Recipe, folder: Path) -> None:
    """Raise RecipeError if `data.judgements` is in the folder of a stage, which a new run would move aside."""
    path = recipe.data.judgements
    if path is not None and folder.resolve() in path.resolve().parents and path.resolve().parent != folder.resolve():
        raise RecipeError(
            f"data.judgements: {path} is in the folder of a stage, which is moved aside when the stage runs again; "
            "copy it to another folder, and name the copy"
        )
