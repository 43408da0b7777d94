"""The two typer apps, and the arguments, the option `--quiet` and the exit codes that all their commands share."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

import trainer
from trainer.runtime import console, processes
from trainer.runtime.machine import explained

EXIT_CODES = {
    0: "Done.",
    1: "A bug in this program, shown with its traceback; please report it.",
    2: "A problem that you can fix, such as a wrong key or a missing file; the message names it, and nothing is lost.",
    3: "The model was evaluated, and was not shown to be better than what you had.",
    130: "Stopped by Ctrl-C; run the same command again to resume.",
}
EPILOG = "\n\n".join(["Exit codes:", *(f"{code:>3}  {meaning}" for code, meaning in EXIT_CODES.items())])

train_app = typer.Typer(pretty_exceptions_enable=False)
reranker_app = typer.Typer(pretty_exceptions_enable=False, no_args_is_help=True, epilog=EPILOG)


def show_version(wanted: bool) -> None:
    """Print the version and exit, if the option is set."""
    if wanted:
        typer.echo(f"domain-reranker {trainer.__version__}")
        raise typer.Exit


RecipeFile = Annotated[Path, typer.Argument(help="The recipe, e.g. recipes/quickstart.yaml.", metavar="RECIPE")]
RecipeOrRun = Annotated[
    Path,
    typer.Argument(help="A recipe, or the folder of a run, e.g. runs/quickstart.", metavar="RECIPE_OR_RUN"),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Values that replace those of the recipe: section.key=value.", metavar="[KEY=VALUE]..."),
]
Runs = Annotated[Path, typer.Option(help="The folder that contains all run folders.")]
Force = Annotated[
    bool, typer.Option("--force", help="Export and push the model even if dev does not show that it is better.")
]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run the Python code in a model's folder. Only for code you trust.")
]
Version = Annotated[
    bool,
    typer.Option("--version", callback=show_version, is_eager=True, help="Print the version and exit."),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only errors and the final result.")]


def command(
    app: typer.Typer, name: str | None = None, *, panel: str | None = None, hidden: bool = False
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add a function to an app as a command with `--quiet`, and raise errors of the machine as MachineError."""

    def add(function: Callable[..., None]) -> Callable[..., None]:
        shown = explained(_with_quiet(_without_end_of_file(function)))
        return app.command(name, rich_help_panel=panel, hidden=hidden)(shown)

    return add


@contextmanager
def despite_quiet() -> Iterator[None]:
    """Print within the context although the command is quiet: a result, or output that the user requested."""
    before = console.console.quiet
    console.console.quiet = not processes.is_main()
    try:
        yield
    finally:
        console.console.quiet = before


def _with_quiet(function: Callable[..., None]) -> Callable[..., None]:
    """Return the function with an additional parameter `quiet`."""

    @wraps(function)
    def call(*, quiet: bool = False, **arguments: Any) -> None:
        if quiet:
            console.quiet()
        function(**arguments)

    signature = inspect.signature(function, eval_str=True)
    option = inspect.Parameter("quiet", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Quiet)
    call.__annotations__ = {**function.__annotations__, "quiet": Quiet}
    vars(call)["__signature__"] = signature.replace(parameters=[*signature.parameters.values(), option])
    return call


def _without_end_of_file(function: Callable[..., None]) -> Callable[..., None]:
    """Raise an EOFError, as from a truncated file, as another error, because typer would treat it as Ctrl-D."""

    @wraps(function)
    def call(**arguments: Any) -> None:
        try:
            function(**arguments)
        except EOFError as error:
            raise RuntimeError(f"a file ends too early: {error}") from error

    return call
