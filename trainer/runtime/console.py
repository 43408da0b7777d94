"""Terminal output.

All output for people goes through `console`, so that only the main one of several processes prints: `quiet()` silences
the others. Texts are printed literally: markup in them is not interpreted, and control characters are escaped.
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

SIGPIPE_EXIT = 141  # 128 + SIGPIPE (13), the exit status that a shell reports when the reader of a pipe has exited
# C0 and C1 (escape sequences, line ends), line and paragraph separators, lone surrogates, and the bidirectional
# controls, which show a text in another order than it is stored.
_INVISIBLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>#|~!&$])")


def visible(text: str) -> str:
    """Return the text with its control characters as escapes, e.g. `\\x1b`, so that no terminal executes them."""
    return _INVISIBLE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def markdown(text: str) -> str:
    """Return the text as one line with Markdown and HTML escaped, so that it can be used in a table's cell."""
    return _MARKDOWN.sub(r"\\\1", visible(" ".join(text.split())))


class Terminal:
    """A file object that writes to the current `sys.stdout` or `sys.stderr`.

    Characters that its encoding lacks are written as escapes. After a broken pipe the program ends silently, like other
    command-line programs. Any other failure, such as a full disk, is an OSError that names standard output.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    @property
    def stream(self) -> Any:
        """The stream itself, not the proxy that a progress bar installs; None if it is closed."""
        stream = getattr(sys, self.name)
        return getattr(stream, "rich_proxied_file", stream)

    @property
    def encoding(self) -> str:
        """The stream's encoding."""
        return getattr(self.stream, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        """Return True if the stream is a terminal."""
        return self.stream is not None and self.stream.isatty()

    def fileno(self) -> int:
        """Return the stream's file descriptor."""
        return self.stream.fileno()

    def write(self, text: str) -> int:
        """Write the text, with characters that the stream's encoding lacks as escapes."""
        if self.stream is not None:
            text = text.encode(self.encoding, "backslashreplace").decode(self.encoding)
            self._try(lambda: self.stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Flush the stream's buffer."""
        if self.stream is not None:
            self._try(self.stream.flush)

    def _try(self, send: Any) -> None:
        try:
            send()
        except OSError as error:
            with suppress(OSError):  # flushing the rest of the buffer would fail again when Python exits
                os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            if self.name == "stderr":
                return  # the error cannot be reported anywhere else
            if isinstance(error, BrokenPipeError):
                raise SystemExit(SIGPIPE_EXIT) from None
            raise OSError(error.errno, error.strerror, "standard output") from None


def _console(name: str) -> Console:
    return Console(file=cast("IO[str]", Terminal(name)), highlight=False, soft_wrap=True)


console = _console("stdout")


def quiet() -> None:
    """Silence this process; every process except the main one calls it."""
    console.quiet = True


def stage(name: str, text: str, *, style: str = "", note: str = "") -> None:
    """Print one line about a stage, e.g. `mine      324 groups ...`, with an optional dimmed note."""
    line = Text.assemble((f"{name:<9}", "bold cyan"), (f" {visible(text)}", style))
    console.print(line.append(f"  {note}", "dim") if note else line)


def warn(name: str, text: str) -> None:
    """Print one line as a warning, in yellow."""
    stage(name, text, style="yellow")


def error(text: str) -> None:
    """Print one error on standard error."""
    if not console.quiet:
        _console("stderr").print(Text(visible(text), style="red"))


def table(title: str, columns: list[str], rows: list[list[str]], left: Collection[str] = ("meaning",)) -> None:
    """Print a table: the first column and those named in `left` are aligned to the left, the others to the right."""
    grid = Table(title=Text(visible(title), style="bold") if title else None, title_justify="left")
    for index, column in enumerate(columns):
        text = index == 0 or column in left
        justify = "left" if text else "right"
        grid.add_column(Text(visible(column)), justify=justify, no_wrap=index == 0, overflow="fold")
    for row in rows:
        grid.add_row(*(Text(visible(cell)) for cell in row))
    console.print(grid)


def card(title: str, texts: dict[str, str]) -> None:
    """Print a ruled title, then each text after its label."""
    console.rule(Text(visible(title), style="bold cyan"), align="left")
    for label, text in texts.items():
        console.print(Text.assemble((label, "bold"), f"  {visible(' '.join(text.split()))}"), soft_wrap=False)


@contextmanager
def progress(description: str, total: int, completed: int = 0) -> Iterator[Advance]:
    """Show a progress bar; yield `advance(count, note)`, where `note` is text such as the loss or the speed.

    Nothing is drawn if the output is not a terminal (a log file, CI) or `total` is 0.
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
    """Callback that advances one progress bar."""

    def __init__(self, bar: Progress, task: int) -> None:
        self._bar = bar
        self._task = task

    def __call__(self, count: float = 1, note: str = "") -> None:
        """Advance by `count` steps and show `note` after the bar."""
        from rich.progress import TaskID

        self._bar.update(TaskID(self._task), advance=count, note=note)
