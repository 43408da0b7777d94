"""The one place that writes to the terminal.

Everything people read goes through `console`, so several processes do not talk at once: `quiet()` silences all but
the main one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

console = Console(highlight=False, soft_wrap=True)


def quiet() -> None:
    """Silence this process (every process but the main one calls it)."""
    console.quiet = True


def stage(name: str, text: str) -> None:
    """One line that says what a stage did or does: `mine      324 groups ...`."""
    console.print(f"[bold cyan]{name:<9}[/] {text}")


def warn(name: str, text: str) -> None:
    """One line that the user should not overlook."""
    console.print(f"[bold cyan]{name:<9}[/] [yellow]{text}[/]")


def error(text: str) -> None:
    """One fault, on standard error, as it stands: no markup, no wrapping."""
    if not console.quiet:
        Console(stderr=True, highlight=False, soft_wrap=True).print(text, style="red", markup=False)


def table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Print a table: first column left, the rest right."""
    grid = Table(title=title, title_justify="left", title_style="bold")
    for position, column in enumerate(columns):
        text = position == 0 or column == "meaning"
        grid.add_column(column, justify="left" if text else "right", no_wrap=position == 0, overflow="fold")
    for row in rows:
        grid.add_row(*map(escape, row))
    console.print(grid)


def card(title: str, texts: dict[str, str]) -> None:
    """Print texts under their labels below a ruled title."""
    console.rule(f"[bold cyan]{escape(title)}[/]", align="left")
    for label, text in texts.items():
        console.print(f"[bold]{label}[/]", escape(" ".join(text.split())), sep="  ", soft_wrap=False)


@contextmanager
def progress(description: str, total: int, completed: int = 0) -> Iterator[Advance]:
    """A progress bar; yields `advance(count, note)`, where `note` is text such as the loss or the speed.

    On a terminal the bar moves; elsewhere (a log file, CI) nothing is drawn and the stage lines tell the story.
    """
    columns = (
        TextColumn("[bold cyan]{task.description:<9}[/]"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    hidden = console.quiet or not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=hidden) as bar:
        task = bar.add_task(description, total=total, completed=completed, note="")
        yield Advance(bar, task)


class Advance:
    """Moves one progress bar forward."""

    def __init__(self, bar: Progress, task: int) -> None:
        self._bar = bar
        self._task = task

    def __call__(self, count: int = 1, note: str = "") -> None:
        """Move `count` steps on and show `note` behind the bar."""
        from rich.progress import TaskID

        self._bar.update(TaskID(self._task), advance=count, note=note)
