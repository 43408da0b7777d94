"""Compare the scores of an exported folder, as other libraries compute them, with the trained model's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from trainer.errors import one_line
from trainer.export.readers import Pairs, score_sentence_transformers, score_transformers
from trainer.inference import Format
from trainer.inference.gate import LEAST_TAU, Quality, exact_fault, kendalls_tau, largest_difference
from trainer.runtime import console
from trainer.runtime.machine import explain

# In half precision: largest difference as a share of the range of scores, and smallest Kendall's tau. Tiny random
# models of ten families have .041 and .943 in bfloat16, .005 and .990 in float16.
HALVES = {"bfloat16": 0.05, "float16": 0.01}
READERS = {"transformers": score_transformers, "sentence-transformers": score_sentence_transformers}


@dataclass(frozen=True)
class Half:
    """Scores in half precision compared with float32: the largest difference, and Kendall's tau over all pairs."""

    difference: float
    tau: float


@dataclass(frozen=True)
class Loading:
    """Whether a target loads a folder: the reasons why not, empty if it does, and a note on its use."""

    name: str
    reasons: tuple[str, ...] = ()
    note: str = ""


@dataclass
class Parity:
    """The largest float32 difference of each reader, the figures in half precision and of formats, and the failures.

    `loaded` says of each library and server whether it loads the folder by its rules.
    """

    pairs: Pairs
    expected: np.ndarray  # (pairs,) float32 scores of the trained model, each pair in a batch of its own
    real: int | None = None  # the number of real pairs, which come first; None: all of them are
    differences: dict[str, float] = field(default_factory=dict)
    halves: dict[str, Half] = field(default_factory=dict)
    formats: dict[Format, Quality] = field(default_factory=dict)  # that passed their gate
    left_out: dict[str, str] = field(default_factory=dict)
    loaded: list[Loading] = field(default_factory=list)

    def compare(self, name: str, score: Callable[[], np.ndarray]) -> bool:
        """Compare a reader's float32 scores and return True if they match; else record the reason in `left_out`."""
        try:
            difference = largest_difference(score(), self.expected)
        except Exception as error:  # exporters and runtimes raise anything
            self.left_out[name] = reason_of(error)
            return False
        if fault := exact_fault(difference):
            self.left_out[name] = fault
        else:
            self.differences[name] = difference
        return not fault

    def compare_folder(self, folder: Path, device: str) -> None:
        """Read the folder with both libraries, pair by pair and in padded batches, in float32 and in half precision.

        If transformers alone fails, nothing else is read.
        """
        with console.progress("verify", total=3 + len(HALVES)) as advance:
            self.compare("transformers", partial(score_transformers, folder, self.pairs, device=device, batch=1))
            advance()
            if "transformers" not in self.differences:
                return
            self.compare("padded batches", partial(score_transformers, folder, self.pairs, device=device))
            advance()
            reader = partial(score_sentence_transformers, folder, self.pairs, device=device)
            self.compare("sentence-transformers", reader)
            advance()
            for dtype in HALVES:
                self._check_half(folder, dtype, device)
                advance()

    def _check_half(self, folder: Path, dtype: str, device: str) -> None:
        """Compare the scores in half precision, and record the worse of both libraries' figures."""
        try:
            readers = [READERS[name] for name in READERS if name in self.differences]
            scores = [score(folder, self.pairs, dtype, device) for score in readers]
        except Exception as error:  # an operation that the device does not have in this precision
            self.left_out[dtype] = reason_of(error)
            return
        half = Half(
            max(largest_difference(one, self.expected) for one in scores),
            min(kendalls_tau(self.expected, one) for one in scores),
        )
        most = HALVES[dtype] * float(np.nanmax(self.expected) - np.nanmin(self.expected))
        if half.difference <= most and not half.tau < LEAST_TAU:
            self.halves[dtype] = half
        else:
            figures = f"its scores differ by {half.difference:.1e} (at most {most:.1e}), Kendall's tau {half.tau:.3f}"
            self.left_out[dtype] = f"{figures} (at least {LEAST_TAU})"


def reason_of(error: Exception) -> str:
    """Return another library's error in one line; raise it if the cause is a full disk or too little memory."""
    if explain(error, Path("runs")):
        raise error
    return f"{type(error).__name__}: {one_line(error)}"[:300]
