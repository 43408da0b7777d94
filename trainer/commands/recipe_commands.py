"""The commands whose argument is a recipe: train, run, the old names of single steps, check, init and compare."""

from __future__ import annotations

import re
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from trainer.commands.apps import (
    Force,
    Overrides,
    RecipeFile,
    Runs,
    TrustRemoteCode,
    Version,
    command,
    despite_quiet,
    reranker_app,
    train_app,
)
from trainer.errors import TrainerError
from trainer.runtime import console, processes

if TYPE_CHECKING:
    from trainer.context.result import RunResult
    from trainer.data import Summary
    from trainer.recipe import Recipe

STEPS = ("retrieve", "mine", "train", "distil", "evaluate", "export")  # formerly separate commands
MEASURED = ("evaluate", "export", "push")  # last stages of runs that have a verdict
OVERRIDE = re.compile(r"[a-z_]+(\.[a-z0-9_]+)?=")
RECIPES = "Recipes"
Verbose = Annotated[
    bool,
    typer.Option(
        "--verbose",
        "-v",
        help="Print the predicted and the real time, the memory and the folder of every stage at the end.",
    ),
]


def _stages(begun: str) -> list[str]:
    """Return the stages whose names begin with what was typed, for the shell."""
    from trainer.pipeline import stage_names

    return [name for name in stage_names() if name.startswith(begun)]


def _carry_out(
    recipe_file: Path, overrides: list[str] | None, runs: Path, until: str, force: bool, verbose: bool
) -> None:
    from trainer.recipe import load_recipe
    from trainer.runtime.launch import sharing_errors

    with sharing_errors():
        recipe = load_recipe(recipe_file, overrides or ())
        from trainer import pipeline

        result = pipeline.run(recipe, runs, until=until, force=force)
    if verbose and processes.is_main():
        from trainer.commands.show import show_stages

        show_stages(result.folder)
    if result.refused is not None:
        raise result.refused
    if processes.is_main():
        _conclude(result, until, f"train {quote(str(recipe_file))}")


def _conclude(result: RunResult, until: str, whole: str) -> None:
    """Print the command that continues a run with `--until`; with `--quiet` print the verdict, if there is one."""
    if console.console.quiet and until in MEASURED:
        with despite_quiet():
            console.stage("evaluate", result.results.sentence, style="green" if result.passed else "red")
    if until == "export":
        console.stage("export", f"nothing was uploaded; to upload: reranker push {quote(str(result.folder))}")
    elif until != "push":
        console.stage("run", f"stopped after {until}, as requested; to continue: {whole}")


@command(train_app)
def train(
    recipe: RecipeFile,
    overrides: Overrides = None,
    runs: Runs = Path("runs"),
    force: Force = False,
    verbose: Verbose = False,
    version: Version = False,
) -> None:
    """Run a complete recipe: mine, train, evaluate and export, and upload the model if the recipe has `push`.

    After an interruption the same command resumes the run. Finished stages are skipped.
    """
    del version
    _carry_out(recipe, overrides, runs, "push", force, verbose)


@command(reranker_app, panel=RECIPES)
def run(
    recipe: RecipeFile,
    overrides: Overrides = None,
    until: Annotated[
        str,
        typer.Option(
            help="The last stage to run, e.g. retrieve, mine, train or export. "
            "The model is uploaded only with push, the default.",
            metavar="STAGE",
            autocompletion=_stages,
        ),
    ] = "push",
    runs: Runs = Path("runs"),
    force: Force = False,
    verbose: Verbose = False,
) -> None:
    """Run a recipe up to a stage. Without --until this is the same as `train RECIPE`."""
    _carry_out(recipe, overrides, runs, until, force, verbose)


def _add_step(until: str) -> None:
    """Keep the old name of `reranker run --until STAGE`."""

    def step(
        recipe: RecipeFile,
        overrides: Overrides = None,
        runs: Runs = Path("runs"),
        force: Force = False,
        verbose: Verbose = False,
    ) -> None:
        _carry_out(recipe, overrides, runs, until, force, verbose)

    step.__doc__ = f"Run a recipe up to the stage {until}, and upload nothing: short for `run --until {until}`."
    command(reranker_app, until, hidden=True)(step)


for _until in STEPS:
    _add_step(_until)


@command(reranker_app, panel=RECIPES)
def generate(
    recipe: RecipeFile,
    overrides: Overrides = None,
    runs: Runs = Path("runs"),
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Print requests, tokens, costs and hours; nothing is sent.")
    ] = False,
    batch: Annotated[
        Path | None,
        typer.Option(help="Write the requests to a file for the Batch API, instead of sending them.", metavar="FILE"),
    ] = None,
    answers: Annotated[
        Path | None,
        typer.Option(help="Read the answers in a file of the Batch API; the run then does not ask for them."),
    ] = None,
) -> None:
    """Make queries from the documents, as the recipe's section generate says, or estimate what that costs."""
    if sum((estimate, batch is not None, answers is not None)) > 1:
        raise TrainerError("generate: --estimate, --batch and --answers are three steps; give one at a time")
    if not (estimate or batch or answers):
        _carry_out(recipe, overrides, runs, "generate", force=False, verbose=False)
        return
    from trainer.commands import generate as commands
    from trainer.recipe import load_recipe

    opened = commands.open_data(load_recipe(recipe, overrides or ()), runs)
    with despite_quiet():
        if batch is not None:
            commands.write_batch(opened, batch)
        elif answers is not None:
            commands.read_batch(opened, answers)
        else:
            commands.show_estimate(opened)


@command(reranker_app, panel=RECIPES)
def init(
    folder: Annotated[Path, typer.Argument(help="A folder with documents, queries and judgements, or with pairs.")],
    output: Annotated[Path | None, typer.Option(help="The recipe file to write; FOLDER.yaml by default.")] = None,
) -> None:
    """Look at the files in a folder and write a recipe that trains on them."""
    from trainer.commands.init import write_recipe

    recipe, layout = write_recipe(folder, output)
    for line in layout.messages:
        console.stage("init", line)
    if layout.missing:
        console.stage("init", f"{' and '.join(layout.missing)} will be split off from train")
    with despite_quiet():
        console.stage("init", f"{recipe} is written; next: reranker check {quote(str(recipe))}")


@command(reranker_app, panel=RECIPES)
def check(
    recipe: Annotated[
        Path | None, typer.Argument(help="The recipe, e.g. recipes/quickstart.yaml.", metavar="RECIPE")
    ] = None,
    overrides: Overrides = None,
    runs: Runs = Path("runs"),
    schema: Annotated[
        bool, typer.Option("--schema", help="Print every key of a recipe with its default and its meaning.")
    ] = False,
) -> None:
    """Check a recipe and its data within seconds, and predict minutes, disk and memory of its run.

    For the forecast the models are timed for some seconds, once for each model and machine.
    """
    if schema:
        _show_schema()
        return
    if recipe is None:
        raise TrainerError("check: name a recipe, or use --schema")
    from trainer.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or ())
    from trainer.check import check as judge

    summary = judge(loaded, runs)
    _forecast(loaded, runs, summary)
    with despite_quiet():
        console.stage("check", f"{recipe} can run", style="green")


def _forecast(recipe: Recipe, runs: Path, summary: Summary) -> None:
    """Print the forecast of a run, unless weights of its models would have to be fetched first."""
    from trainer import forecast, pipeline
    from trainer.model_files import references

    absent = [model.name for model in recipe.model_references if not references.has_weights(model.name)]
    if absent:
        console.stage(
            "check", f"no forecast yet: train fetches the weights of {', '.join(dict.fromkeys(absent))} first"
        )
        return
    opened = pipeline.open_run(recipe, runs)
    made = pipeline.forecast(opened, opened.stages, summary)
    if made is not None:
        finished = [stage.folder for stage in opened.stages if stage.folder not in made.costs]
        forecast.show(made, finished, table=True)


def _show_schema() -> None:
    from trainer.recipe import Recipe, schema_table, sections

    columns = ["key", "default", "meaning"]
    with despite_quiet():
        console.table("", columns, [row for row in schema_table(Recipe) if row[0] not in sections()])
        for name, section in sections().items():
            console.table(name, columns, schema_table(section))


@command(reranker_app, panel=RECIPES)
def compare(
    recipe: RecipeFile,
    words: Annotated[
        list[str],
        typer.Argument(
            help="Rerankers (Hub ids, model or run folders, package:NAME/SUB), and section.key=value for the recipe.",
            metavar="MODEL... [KEY=VALUE]...",
        ),
    ],
    runs: Runs = Path("runs"),
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Evaluate existing rerankers on the dev and test queries of a recipe, without training."""
    from trainer.recipe import load_recipe

    overrides = [word for word in words if OVERRIDE.match(word)]
    loaded = load_recipe(recipe, overrides)
    from trainer.commands.compare import compare

    compare(loaded, runs, [word for word in words if word not in overrides], trust_remote_code)
