"""What can go wrong that the user can mend.

TrainerError
 +-- RecipeError     the recipe: unknown key, wrong type, contradiction
 +-- DataError       corpus, queries or qrels: unreadable line, missing document, a query in two splits
 +-- ModelError      a model reference that cannot be found, read or trusted
 +-- RunError        a run that cannot go on: another recipe's work, too little memory, a loss that is not finite
 +-- ExportError     an export that does not give the trained model's scores
 |    +-- NotBetterError  a model that was measured and is not better than what was there before
 +-- PushError       the Hub: no token, no network, a refused name
 +-- ServeError      the server: a port in use, an empty key, a package that is not installed
 +-- MachineError    the machine: a full disk, a missing permission, too little memory

Each message says where, what is wrong, what was given and what to do next. The commands print it without a
traceback and exit with the error's exit code; anything else that escapes is our own fault and exits with 1.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import ClassVar


class TrainerError(Exception):
    """Base of all errors that the user can mend; `faults` holds one line each, all found at once."""

    exit_code: ClassVar[int] = 2

    def __init__(self, faults: str | Iterable[str]) -> None:
        self.faults = [faults] if isinstance(faults, str) else list(faults)
        super().__init__("\n".join(self.faults))


class RecipeError(TrainerError):
    """The recipe says something that cannot be carried out."""


class DataError(TrainerError):
    """The collection on disk is incomplete or contradicts itself."""


class ModelError(TrainerError):
    """A model reference leads to nothing that can be loaded."""


class RunError(TrainerError):
    """The run cannot go on, from what is in its folder or on these devices."""


class ExportError(TrainerError):
    """The exported model does not give the trained model's scores."""


class NotBetterError(ExportError):
    """The model was measured, and nothing shows that it is better than what was there before."""

    exit_code: ClassVar[int] = 3


class PushError(TrainerError):
    """The Hub did not take the model."""


class ServeError(TrainerError):
    """The server cannot start."""


class MachineError(TrainerError):
    """The machine refuses what the run needs: room on a disk, a permission, memory, open files."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean X?` for the nearest known word, or the whole list where none is near."""
    choices = list(known)
    near = get_close_matches(word, choices, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else f"; known here: {', '.join(choices)}"


def one_line(error: object) -> str:
    """Somebody else's error in one line, for the middle of a sentence of ours."""
    return " ".join(str(error).split()) or type(error).__name__
