"""The commands: `train RECIPE` is the whole pipeline, `reranker` holds the single steps.

Exit codes:

    0    done
    1    our own fault, with its traceback
    2    the user can mend it: one message, no traceback
    3    measured, and not shown to be better than what was there before
    130  stopped by Ctrl-C
    141  nobody reads the output any more (`| head`)
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from shlex import quote
from typing import Annotated, Any, Literal

import typer

from trainer.errors import TrainerError
from trainer.runtime.machine import explained

RecipeFile = Annotated[Path, typer.Argument(help="The recipe, e.g. recipes/quickstart.yaml", metavar="RECIPE")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="section.key=value, laid over the recipe", metavar="[KEY=VALUE]...")
]
Runs = Annotated[Path, typer.Option(help="Folder for results; a run's own is RUNS/NAME")]
Force = Annotated[
    bool, typer.Option("--force", help="Export and push even a model that dev does not show to be better")
]

TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run Python code that a model's folder brings along")
]
OVERRIDE = re.compile(r"[a-z_]+(\.[a-z0-9_]+)?=")

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
    from trainer.runtime import console, processes

    if not processes.is_main():
        console.quiet()
    if processes.several():
        processes.watch()
    with processes.interruptible():
        try:
            app()
        except TrainerError as error:
            console.console.quiet = not processes.is_first_to_end()
            for fault in error.faults:
                console.error(fault)
            sys.exit(error.exit_code)
        except RuntimeError as error:
            if not processes.is_loss(error):
                raise
            processes.leave()


def _command(app: typer.Typer, name: str | None = None) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add a function to an app as a command."""
    return lambda function: app.command(name)(explained(_without_end_of_file(function)))


def _without_end_of_file(function: Callable[..., None]) -> Callable[..., None]:
    """Raise an EOFError, as a file that was cut short gives it, as another error: typer takes it for Ctrl-D."""

    @wraps(function)
    def call(**arguments: Any) -> None:
        try:
            function(**arguments)
        except EOFError as error:
            raise RuntimeError(f"a file ends too early: {error}") from error

    return call


def _run(recipe_file: Path, overrides: list[str] | None, runs: Path, until: str, force: bool = False) -> None:
    from trainer.recipe import load_recipe
    from trainer.runtime.launch import sharing_errors

    with sharing_errors():
        recipe = load_recipe(recipe_file, overrides or ())
        from trainer import pipeline

        result = pipeline.run(recipe, runs, until=until, force=force)
    if result.refused is not None:
        raise result.refused


@_command(train_app)
def train(recipe: RecipeFile, overrides: Overrides = None, runs: Runs = Path("runs"), force: Force = False) -> None:
    """From a corpus, queries and judgements to a measured, exported reranker. Run it again to go on after a stop."""
    _run(recipe, overrides, runs, "export", force)


@_command(reranker_app)
def check(
    recipe: Annotated[Path | None, typer.Argument(help="The recipe", metavar="RECIPE")] = None,
    overrides: Overrides = None,
    runs: Runs = Path("runs"),
    schema: Annotated[bool, typer.Option("--schema", help="Print every key, its default and its meaning")] = False,
) -> None:
    """Judge recipe and data in a second, without loading a model."""
    from trainer.recipe import Recipe, load_recipe, schema_table, sections
    from trainer.runtime import console

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

    judge(loaded, runs)
    console.stage("check", f"{recipe} can run", style="green")


@_command(reranker_app)
def init(
    folder: Annotated[Path, typer.Argument(help="A folder with documents, queries and judgements, or with pairs")],
    output: Annotated[
        Path | None, typer.Option(help="The recipe to write; NAME-OF-FOLDER.yaml where not given")
    ] = None,
) -> None:
    """Look at a folder and write a recipe that trains on it."""
    from trainer.commands.init import write_recipe
    from trainer.runtime import console

    recipe, layout = write_recipe(folder, output)
    for line in layout.messages:
        console.stage("init", line)
    if layout.missing:
        console.stage("init", f"{' and '.join(layout.missing)} will be split off from train")
    console.stage("init", f"{recipe} is written; next: reranker check {quote(str(recipe))}")


def _step(name: str, explanation: str) -> None:
    """Add the command that runs a recipe up to the stage of this name."""

    def step(recipe: RecipeFile, overrides: Overrides = None, runs: Runs = Path("runs"), force: Force = False) -> None:
        _run(recipe, overrides, runs, name, force)

    step.__doc__ = explanation
    _command(reranker_app, name)(step)


_step("retrieve", "Find candidates for every judged query.")
_step("mine", "... and mine hard negatives from them.")
_step("train", "... and train the cross-encoder.")
_step("distil", "... and distil it into a standard checkpoint, where the recipe has the section.")
_step("evaluate", "... and measure it on test.")
_step("export", "... and write the serving folder (and push it, where the recipe says so).")


@_command(reranker_app)
def report(
    run: Annotated[Path, typer.Argument(help="A recipe, or the folder of a run", metavar="RECIPE_OR_RUN")],
    overrides: Overrides = None,
    runs: Runs = Path("runs"),
) -> None:
    """Write report.html and report.md of a finished run again."""
    from trainer.recipe import load_recipe
    from trainer.reporting.write import write_report
    from trainer.runtime import console

    folder = run if run.is_dir() else runs / load_recipe(run, overrides or ()).name
    console.stage("report", str(write_report(folder)))


@_command(reranker_app)
def compare(
    recipe: RecipeFile,
    words: Annotated[
        list[str],
        typer.Argument(
            help="Hub ids, folders or package:NAME/SUBFOLDER of rerankers; section.key=value is laid over the recipe",
            metavar="MODEL... [KEY=VALUE]...",
        ),
    ],
    runs: Runs = Path("runs"),
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Measure ready rerankers on the recipe's dev and test queries, without training."""
    from trainer.recipe import load_recipe

    overrides = [word for word in words if OVERRIDE.match(word)]
    loaded = load_recipe(recipe, overrides)
    from trainer.commands.compare import compare

    compare(loaded, runs, [word for word in words if word not in overrides], trust_remote_code)


@_command(reranker_app)
def score(
    model: Annotated[str, typer.Argument(help="Folder, Hub id or package:NAME/SUBFOLDER", metavar="MODEL")],
    source: Annotated[Path, typer.Argument(help='JSON lines of {"query", "documents"}, or a TREC run', metavar="IN")],
    output: Annotated[Path, typer.Argument(help="The same in the model's order", metavar="OUT")],
    data: Annotated[
        Path | None, typer.Option(help="For a TREC run: recipe, or folder in BEIR layout, with its texts")
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(help="Tokens of query and document; the model's own if none")
    ] = None,
    precision: Annotated[Literal["fp32", "bf16", "fp16", "auto"], typer.Option(help="auto: the fastest here")] = "fp32",
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Rerank many lists offline; killed anywhere, the same command goes on."""
    from trainer.commands.score import score
    from trainer.recipe import Data, load_recipe

    section = None
    if data is not None:
        section = Data(path=data) if data.is_dir() else load_recipe(data, ()).data
    score(model, source, output, section, max_length, precision, trust_remote_code)


@_command(reranker_app)
def review(recipe: RecipeFile, overrides: Overrides = None, runs: Runs = Path("runs")) -> None:
    """Judge the labels that mining suspects, a pair a screen; leave with q, and the same command goes on."""
    from trainer.commands.review import review
    from trainer.mining.likely_false_negatives import FILE
    from trainer.recipe import load_recipe
    from trainer.runtime import console

    loaded = load_recipe(recipe, overrides or ())
    folder = runs / loaded.name
    judgements = folder / "judgements.jsonl"
    mined = folder / ("mine-2" if loaded.mine.rounds == 2 else "mine")
    if review(mined / FILE, judgements, _key):
        again = f"train {quote(str(recipe))} {quote(f'data.judgements={judgements}')}"
        console.stage("review", f"to train with them: {again}")


def _key() -> str:
    """One of the keys of a review: pressed on a terminal, the first of a line elsewhere, where the end means q."""
    from rich.text import Text

    from trainer.commands.review import KEYS
    from trainer.runtime import console

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


@_command(reranker_app)
def serve(
    model: Annotated[str, typer.Argument(help="A run's folder, e.g. runs/quickstart, or a model", metavar="MODEL")],
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one", min=0, max=65535)] = 8000,
    precision: Annotated[
        Literal["fp32", "bf16", "fp16", "auto"], typer.Option(help="What it computes in; auto is the fastest here")
    ] = "fp32",
    max_documents: Annotated[int, typer.Option(help="Documents of a request, at most", min=1)] = 1000,
    max_waiting: Annotated[int, typer.Option(help="Documents of all waiting requests; more get a 429", min=1)] = 4000,
    max_body: Annotated[int, typer.Option(help="MiB of a request's body, at most", min=1)] = 10,
    batch_tokens: Annotated[
        int | None, typer.Option(help="Tokens computed together, by device if absent", min=1)
    ] = None,
    page: Annotated[bool, typer.Option(help="Serve the page to try the model at /")] = True,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that the model brings")
    ] = False,
) -> None:
    """Serve a trained reranker over HTTP, as Cohere, Jina, Voyage, TEI, Infinity and vLLM do.

    Where the environment variable RERANKER_API_KEY is set, clients must send it.
    """
    from trainer.serving import server

    server.require_packages()
    from trainer.serving.settings import MIB, Settings

    settings = Settings(
        key=server.api_key(),
        max_documents=max_documents,
        max_waiting=max_waiting,
        max_body=max_body * MIB,
        batch_tokens=batch_tokens,
        page=page,
    )
    server.serve(model, host, port, settings, precision, trust_remote_code)


@_command(reranker_app)
def push(
    recipe: RecipeFile,
    overrides: Overrides = None,
    runs: Runs = Path("runs"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would go, and send nothing")] = False,
    force: Force = False,
) -> None:
    """Upload the exported model to the Hugging Face Hub."""
    from trainer import pipeline
    from trainer.recipe import load_recipe

    pipeline.push(load_recipe(recipe, overrides or ()), runs, dry_run=dry_run, force=force)
