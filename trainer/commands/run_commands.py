"""The commands whose argument is a run: runs, show, report, review, push and clean."""

from __future__ import annotations

import sys
from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from trainer.commands.apps import (
    Overrides,
    RecipeOrRun,
    Runs,
    Version,
    command,
    despite_quiet,
    reranker_app,
)
from trainer.errors import RunError
from trainer.runtime import console

RUNS = "Runs"


@reranker_app.callback()
def reranker(version: Version = False) -> None:
    """Fine-tune and use rerankers. `train RECIPE` runs a complete recipe; all other commands are here."""
    del version


@command(reranker_app, panel=RUNS)
def runs(
    runs: Runs = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the runs as one JSON list.")] = False,
) -> None:
    """List the runs in a folder with their data, base, metric, gain, verdict and size; the newest is last."""
    from trainer.commands.runs import list_runs

    with despite_quiet():
        list_runs(runs, as_json)


@command(reranker_app, panel=RUNS)
def show(
    run: RecipeOrRun,
    overrides: Overrides = None,
    query: Annotated[
        str | None, typer.Option(help="Show one test query, by its id: its documents before and after.", metavar="ID")
    ] = None,
    worst: Annotated[
        int | None, typer.Option(help="Show the N test queries with the largest losses.", metavar="N", min=1)
    ] = None,
    runs: Runs = Path("runs"),
) -> None:
    """Show the test table of a finished run, and the queries with the largest gains and losses."""
    from trainer.commands.run_folders import folder_of
    from trainer.commands.show import show_query, show_run, show_worst

    folder = folder_of(run, overrides, runs)
    with despite_quiet():
        if query is not None:
            show_query(folder, query)
        elif worst is not None:
            show_worst(folder, worst)
        else:
            show_run(folder)


@command(reranker_app, panel=RUNS)
def report(run: RecipeOrRun, overrides: Overrides = None, runs: Runs = Path("runs")) -> None:
    """Write report.html and report.md of a finished run again."""
    from trainer.commands.run_folders import folder_of
    from trainer.commands.show import read_evaluation
    from trainer.reporting.queries import FILE
    from trainer.reporting.write import write_report

    folder = folder_of(run, overrides, runs)
    if (folder / "evaluate" / FILE).is_file():  # else it is written first
        read_evaluation(folder)
    page = write_report(folder)
    with despite_quiet():
        console.stage("report", str(page))


@command(reranker_app, panel=RUNS)
def review(
    recipe: RecipeOrRun,
    overrides: Overrides = None,
    runs: Runs = Path("runs"),
    to: Annotated[
        Path | None,
        typer.Option(
            "--to",
            help="Write the open pairs to a file: .csv (spreadsheet), .jsonl, .json (Label Studio).",
            metavar="FILE",
        ),
    ] = None,
    labelled: Annotated[
        Path | None, typer.Option("--from", help="Add the labels in such a file to the answers.", metavar="FILE")
    ] = None,
) -> None:
    """Label the pairs that mining lists as likely false negatives, one at a time.

    Press q to leave; the same command resumes the review. Answers are used by a recipe whose `data.judgements` names
    their file. To label them elsewhere, write them to a file with --to, and read it back with --from.
    """
    from trainer.commands.labels import read_labels, write_pairs
    from trainer.commands.review import newest_pairs_file, pairs_file_of, review
    from trainer.commands.run_folders import folder_of, recipe_from

    if recipe.is_dir():
        folder = folder_of(recipe, overrides, runs)
        pairs_file = newest_pairs_file(folder)
    else:
        loaded = recipe_from(recipe, overrides, runs)
        folder = runs / loaded.name
        pairs_file = pairs_file_of(folder, loaded.mine.rounds)
    judgements = folder / "judgements.jsonl"
    if to is not None and labelled is not None:
        raise RunError("review: give either --to or --from")
    with despite_quiet():
        if to is not None:
            write_pairs(pairs_file, judgements, to)
            return
        if read_labels(labelled, pairs_file, judgements) if labelled else review(pairs_file, judgements, _key):
            named = "RECIPE" if recipe.is_dir() else quote(str(recipe))
            console.stage("review", f"to train with them: train {named} {quote(f'data.judgements={judgements}')}")


def _key() -> str:
    """Return one key of a review: pressed on a terminal, else the first character of a line; q at the end of input."""
    from rich.text import Text

    from trainer.commands.review import KEYS

    console.console.print(Text("   ").join(Text.assemble((key, "bold"), f" {word}") for key, word in KEYS.items()))
    while True:
        key = _pressed().lower()
        if key in KEYS:
            return key


def _pressed() -> str:
    if sys.stdin is None:
        return "q"
    if not sys.stdin.isatty():
        return sys.stdin.readline()[:1] or "q"
    try:
        return typer.getchar()
    except EOFError:  # Ctrl-D
        return "q"


@command(reranker_app, panel=RUNS)
def push(
    run: RecipeOrRun,
    overrides: Overrides = None,
    runs: Runs = Path("runs"),
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the files that would be uploaded, and upload nothing.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Upload the model even if dev does not show that it is better.")
    ] = False,
) -> None:
    """Upload an exported model to the Hugging Face Hub.

    With a run folder, the model in it is uploaded. With a recipe, the model must have been exported by this recipe.
    """
    from trainer.commands.push import push_recipe, push_run

    with despite_quiet():
        if run.is_dir():
            push_run(run, overrides or (), dry_run, force)
        else:
            push_recipe(run, overrides or (), runs, dry_run, force)


@command(reranker_app, panel=RUNS)
def clean(
    runs: Runs = Path("runs"),
    yes: Annotated[bool, typer.Option("--yes", help="Delete the listed files.")] = False,
) -> None:
    """Show the disk use of runs and caches and the files that can be deleted; delete them only with --yes.

    Deletable are old results of stages that ran again, temporary files of finished stages, and caches that belong to no
    run. Finished stages and everything that an active run may use are kept.
    """
    from trainer.commands.clean import clean

    with despite_quiet():
        clean(runs, yes)
