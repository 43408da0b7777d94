"""The one place that writes to the terminal.

Everything people read goes through `console`, so several processes do not talk at once: `quiet()` silences all but
the main one. Texts are shown as they are: no markup in them is read, and control characters are shown as escapes.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any, cast

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

SIGPIPE_EXIT = 141  # 128 and the number of SIGPIPE, as a shell reports a program whose reader went away
# C0 and C1 (escape sequences, line ends), line and paragraph separators, lone surrogates, and the marks that let a text
# read in another order than it is stored.
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>#|~!&$])")


def visible(text: str) -> str:
    """Return the text with its control characters as escapes, e.g. `\\x1b`, so that no terminal obeys them."""
    return _UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def markdown(text: str) -> str:
    """Return the text as one line that Markdown shows as it is: no markup, no HTML, no end of a table's cell."""
    return _MARKDOWN.sub(r"\\\1", visible(" ".join(text.split())))


class Terminal:
    """Standard output or standard error, whatever they are at the moment.

    Characters that its encoding does not have are written as escapes. Where nobody reads the output any more the
    program ends without a word, as others do; a full disk behind it is an OSError that names it.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    @property
    def stream(self) -> Any:
        """The stream itself, not the one that a progress bar puts before it; None where it is closed."""
        stream = getattr(sys, self.name)
        return getattr(stream, "rich_proxied_file", stream)

    @property
    def encoding(self) -> str:
        """The stream's encoding."""
        return getattr(self.stream, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        """Return whether a person may look at it."""
        return self.stream is not None and self.stream.isatty()

    def fileno(self) -> int:
        """Return the stream's descriptor."""
        return self.stream.fileno()

    def write(self, text: str) -> int:
        """Write what the stream's encoding has, and escapes for the rest."""
        if self.stream is not None:
            text = text.encode(self.encoding, "backslashreplace").decode(self.encoding)
            self._try(lambda: self.stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Send what is buffered."""
        if self.stream is not None:
            self._try(self.stream.flush)

    def _try(self, send: Any) -> None:
        try:
            send()
        except OSError as error:
            with suppress(OSError):  # what is still buffered would fail once more when Python ends
                os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            if self.name == "stderr":
                return  # there is nowhere left to report it
            if isinstance(error, BrokenPipeError):
                raise SystemExit(SIGPIPE_EXIT) from None
            raise OSError(error.errno, error.strerror, "standard output") from None


def _console(name: str) -> Console:
    return Console(file=cast("IO[str]", Terminal(name)), highlight=False, soft_wrap=True)


console = _console("stdout")


def quiet() -> None:
    """Silence this process (every process but the main one calls it)."""
    console.quiet = True


def stage(name: str, text: str, *, style: str = "", note: str = "") -> None:
    """Print one line that says what a stage did or does, `mine      324 groups ...`, and perhaps a dim note."""
    line = Text.assemble((f"{name:<9}", "bold cyan"), (f" {visible(text)}", style))
    console.print(line.append(f"  {note}", "dim") if note else line)


def warn(name: str, text: str) -> None:
    """Print one line that the user should not overlook."""
    stage(name, text, style="yellow")


def error(text: str) -> None:
    """Print one fault on standard error."""
    if not console.quiet:
        _console("stderr").print(Text(visible(text), style="red"))


def table(title: str, columns: list[str], rows: list[list[str]], left: Collection[str] = ("meaning",)) -> None:
    """Print a table: the first column and those named in `left` are aligned to the left, the others to the right."""
    grid = Table(title=Text(visible(title), style="bold") if title else None, title_justify="left")
    for position, column in enumerate(columns):
        text = position == 0 or column in left
        justify = "left" if text else "right"
        grid.add_column(Text(visible(column)), justify=justify, no_wrap=position == 0, overflow="fold")
    for row in rows:
        grid.add_row(*(Text(visible(cell)) for cell in row))
    console.print(grid)


def card(title: str, texts: dict[str, str]) -> None:
    """Print texts under their labels below a ruled title."""
    console.rule(Text(visible(title), style="bold cyan"), align="left")
    for label, text in texts.items():
        console.print(Text.assemble((label, "bold"), f"  {visible(' '.join(text.split()))}"), soft_wrap=False)


@contextmanager
def progress(description: str, total: int, completed: int = 0) -> Iterator[Advance]:
    """A progress bar; yields `advance(count, note)`, where `note` is text such as the loss or the speed.

    On a terminal the bar moves; elsewhere (a log file, CI) nothing is drawn and the stage lines tell the story.
    A bar of nothing is not drawn either.
    """
    columns = (
        TextColumn("{task.description:<9}", style="bold cyan", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    hidden = console.quiet or not console.is_terminal or not total
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
