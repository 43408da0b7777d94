"""The errors that a user can fix.

TrainerError
 +-- RecipeError     the recipe: unknown key, wrong type, contradiction
 +-- DataError       corpus, queries or qrels: unreadable line, missing document, a query in two splits
 +-- ModelError      a model reference that does not exist, or a model that cannot be read or trusted
 +-- RunError        a run that cannot continue: another recipe's work, too little memory, a loss that is not finite
 +-- ExportError     an exported model whose scores differ from the trained model's
 |    +-- NotBetterError  a model that is not measurably better than the system it would replace
 +-- PushError       the Hub: no token, no network, a refused name
 +-- ServeError      the server: a port in use, an empty key, a package that is not installed
 +-- MachineError    the machine: a full disk, a missing permission, too little memory

Each message names the file or key, the problem, the given value and the next step. The commands print it without a
traceback and exit with the error's exit code. Any other exception is a bug of this program and exits with 1.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import ClassVar


class TrainerError(Exception):
    """Base of all errors that the user can fix; `faults` holds one message per problem, collected at once."""

    exit_code: ClassVar[int] = 2

    def __init__(self, faults: str | Iterable[str]) -> None:
        self.faults = [faults] if isinstance(faults, str) else list(faults)
        super().__init__("\n".join(self.faults))


class RecipeError(TrainerError):
    """The recipe is invalid."""


class DataError(TrainerError):
    """The collection is incomplete or contradicts itself."""


class ModelError(TrainerError):
    """A referenced model does not exist or cannot be loaded."""


class RunError(TrainerError):
    """The run cannot continue, because of its folder's content or of the available devices."""


class ExportError(TrainerError):
    """The exported model's scores differ from the trained model's."""


class NotBetterError(ExportError):
    """The measured model is not significantly better than the system it would replace."""

    exit_code: ClassVar[int] = 3


class PushError(TrainerError):
    """The Hub did not accept the model."""


class ServeError(TrainerError):
    """The server cannot start."""


class MachineError(TrainerError):
    """The machine lacks disk space, permissions, memory or open files for the run."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `; did you mean X?` with the most similar known word, or the list of all of them if none is similar."""
    choices = list(known)
    near = get_close_matches(word, choices, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else f"; known here: {', '.join(choices)}"


def one_line(error: object) -> str:
    """Return the text of another library's error on one line, to be quoted inside a message."""
    return " ".join(str(error).split()) or type(error).__name__
