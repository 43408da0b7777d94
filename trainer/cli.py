"""The commands: `train RECIPE` is the whole pipeline, `reranker` holds the single steps.

Exit codes: 0 done; 2 the user can mend it (one message, no traceback); 1 our own fault (with its traceback).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from trainer.errors import TrainerError

RecipeFile = Annotated[Path, typer.Argument(help="The recipe, e.g. recipes/quickstart.yaml", metavar="RECIPE")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="section.key=value, laid over the recipe", metavar="[KEY=VALUE]...")
]
Runs = Annotated[Path, typer.Option(help="Folder for results; a run's own is RUNS/NAME")]
Force = Annotated[bool, typer.Option("--force", help="Export and push even a model that is no better on dev")]

train_app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
reranker_app = typer.Typer(
    add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True, help="The single steps of a recipe."
)


def train_command() -> None:
    """Entry point of `train` and of `python -m trainer`."""
    _guarded(train_app)


def reranker_command() -> None:
    """Entry point of `reranker`."""
    _guarded(reranker_app)


def _guarded(app: Callable[[], None]) -> None:
    """Run a command; what the user can mend is printed without a traceback."""
    from trainer import console, processes

    if os.environ.get("RANK", "0") != "0":
        console.quiet()
    if processes.several():
        processes.watch()
    try:
        app()
    except TrainerError as error:
        console.console.quiet = not processes.speaks()
        for fault in error.faults:
            console.error(fault)
        sys.exit(2)
    except RuntimeError as error:
        if not processes.is_loss(error):
            raise
        processes.leave()
    except SystemExit as end:  # typer's answer to Ctrl-C
        if end.code == 130:
            console.error("stopped; the same command goes on from the last checkpoint")
        raise


def _run(recipe_file: Path, overrides: list[str] | None, runs: Path, until: str, force: bool = False) -> None:
    from trainer.recipe import load_recipe

    recipe = load_recipe(recipe_file, overrides or ())
    from trainer import pipeline

    pipeline.run(recipe, runs, until, force)


@train_app.command()
def train(recipe: RecipeFile, overrides: Overrides = None, runs: Runs = Path("runs"), force: Force = False) -> None:
    """From a corpus, queries and judgements to a measured, exported reranker. Run it again to go on after a stop."""
    _run(recipe, overrides, runs, "export", force)


@reranker_app.command()
def check(
    recipe: Annotated[Path | None, typer.Argument(help="The recipe", metavar="RECIPE")] = None,
    overrides: Overrides = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print every key, its default and its meaning")] = False,
) -> None:
    """Judge recipe and data in a second, without loading a model."""
    from rich.markup import escape

    from trainer import console
    from trainer.recipe import Recipe, load_recipe, schema_table, sections

    if schema:
        top = [row for row in schema_table(Recipe) if row[0] not in sections()]
        console.table("", ["key", "default", "meaning"], top)
        for name, section in sections().items():
            console.table(name, ["key", "default", "meaning"], schema_table(section))
        return
    if recipe is None:
        raise TrainerError("check: name a recipe, or ask for --schema")
    loaded = load_recipe(recipe, overrides or ())
    from trainer.check import check as judge

    judge(loaded)
    console.stage("check", f"[green]{escape(str(recipe))} can run[/]")


@reranker_app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="A folder with documents, queries and judgements, or with pairs")],
    output: Annotated[
        Path | None, typer.Option(help="The recipe to write; NAME-OF-FOLDER.yaml where not given")
    ] = None,
) -> None:
    """Look at a folder and write a recipe that trains on it."""
    from rich.markup import escape

    from trainer import console
    from trainer.init import write_recipe

    recipe, layout = write_recipe(folder, output)
    for line in layout.said:
        console.stage("init", escape(line))
    if layout.missing:
        console.stage("init", f"{' and '.join(layout.missing)} will be split off from train")
    console.stage("init", f"{escape(str(recipe))} is written; next: reranker check {escape(str(recipe))}")


def _step(name: str, explanation: str) -> None:
    """Add the command that runs a recipe up to the stage of this name."""

    def step(recipe: RecipeFile, overrides: Overrides = None, runs: Runs = Path("runs"), force: Force = False) -> None:
        _run(recipe, overrides, runs, name, force)

    step.__doc__ = explanation
    reranker_app.command(name)(step)


_step("retrieve", "Find candidates for every judged query.")
_step("mine", "... and mine hard negatives from them.")
_step("train", "... and train the cross-encoder.")
_step("distil", "... and distil it into a standard checkpoint, where the recipe has the section.")
_step("evaluate", "... and measure it on test.")
_step("export", "... and write the serving folder (and push it, where the recipe says so).")


@reranker_app.command()
def review(recipe: RecipeFile, overrides: Overrides = None, runs: Runs = Path("runs")) -> None:
    """Judge the labels that mining suspects, a pair a screen; leave with q, and the same command goes on."""
    from trainer import console
    from trainer.mine.suspects import FILE
    from trainer.recipe import load_recipe
    from trainer.review import review

    folder = runs / load_recipe(recipe, overrides or ()).name
    judgements = folder / "judgements.jsonl"
    if review(folder / "mine" / FILE, judgements, _key):
        console.stage("review", f"to train with them: train {recipe} data.judgements={judgements}")


def _key() -> str:
    """One of y, n, s, q: a key on a terminal, a line elsewhere, where the end means q."""
    from trainer import console

    console.console.print("[bold]y[/] relevant   [bold]n[/] not   [bold]s[/] skip   [bold]q[/] leave")
    while True:
        key = typer.getchar() if sys.stdin.isatty() else (sys.stdin.readline()[:1] or "q")
        if key.lower() in ("y", "n", "s", "q"):
            return key.lower()


@reranker_app.command()
def push(
    recipe: RecipeFile,
    overrides: Overrides = None,
    runs: Runs = Path("runs"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would go, and send nothing")] = False,
    force: Force = False,
) -> None:
    """Upload the exported model to the Hugging Face Hub."""
    from trainer.pipeline import Pipeline
    from trainer.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or ())
    Pipeline(loaded, runs / loaded.name).push(dry_run, force)
