"""Terminal output.

All output for people goes through `console`, so that only the main one of several processes prints: `quiet()` silences
the others. Texts are printed literally: markup in them is not interpreted, and control characters are escaped.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import IO, Any, Protocol, cast

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

LINE_SECONDS = 30.0  # between two lines of progress where there is no terminal
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
def progress(
    description: str, total: int, completed: int = 0, clock: Callable[[], float] = time.monotonic
) -> Iterator[Advance]:
    """Show the progress of long work; yield `advance(count, note)`, where `note` is text such as the loss or the speed.

    A terminal shows a bar. Elsewhere (a log file, CI) a line is printed about every 30 seconds, with the rate and the
    time left; nothing for shorter work. Nothing is shown if `total` is 0.
    """
    if not total or console.quiet:
        yield no_progress
    elif not console.is_terminal:
        yield Lines(description, total, completed, clock)
    else:
        columns = (
            TextColumn("{task.description:<9}", style="bold cyan", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
        )
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task(description, total=total, completed=completed, note="")
            yield lambda count=1, note="": bar.update(task, advance=count, note=note)


class Advance(Protocol):
    """Callback that advances one progress by `count`, with a note."""

    def __call__(self, count: float = 1, note: str = "") -> None:
        """Advance by `count` steps."""


Note = str | Advance | None  # progress of long work: under a description, by the caller's callback, or not shown


def shown(note: Note, total: int) -> AbstractContextManager[Advance]:
    """Show the progress of work as `note` says; within the caller's own progress that one is advanced."""
    if callable(note):
        return nullcontext(note)
    return progress(note or "", total if note else 0)


def no_progress(count: float = 1, note: str = "") -> None:
    """Show nothing."""


class Lines:
    """Progress as lines, at least LINE_SECONDS apart, with the rate since the start and the time left by that rate."""

    def __init__(self, description: str, total: int, completed: int, clock: Callable[[], float]) -> None:
        self._description = description
        self._total = total
        self._first = self._done = float(completed)
        self._clock = clock
        self._begun = self._printed = clock()

    def __call__(self, count: float = 1, note: str = "") -> None:
        """Advance by `count` steps, and print a line if the last one is old enough."""
        self._done += count
        now = self._clock()
        if now - self._printed < LINE_SECONDS or self._done >= self._total:
            return
        self._printed = now
        rate = (self._done - self._first) / (now - self._begun)
        left = duration((self._total - self._done) / rate) if rate else "unknown"
        text = f"{self._done:.0f} of {self._total} ({self._done / self._total:.0%}), {rate:.3g} per second, {left} left"
        stage(self._description, f"{text}; {note}" if note else text)


def duration(seconds: float) -> str:
    """Return a duration in words, rounded: 40 s, 12 min or 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
