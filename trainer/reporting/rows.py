"""The rows of a report's table: the systems, what they are called and what they mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from trainer.evaluation.statistics import Interval

NAMES = {
    "first_stage_default": ("First stage, untuned", "the candidates of the first stage with its default settings"),
    "first_stage": ("First stage", "the candidates in the order in which they were retrieved"),
    "base": ("Base model", "the same candidates reranked by the model before any training"),
    "fitted": (
        "Fitted model",
        "the unchanged model with a head or lexical signals fitted to your train queries; nothing else is trained",
    ),
    "tuned": ("Tuned model", "the model trained on your data"),
    "distilled": ("Distilled model", "a standard classifier that learned from the tuned model"),
    "other_libraries": (
        "In other libraries",
        "the exported model’s logit, as libraries and servers compute it that know neither windows nor lexical signals",
    ),
    "seeds": ("Mean of the seeds", "each query’s value averaged over the trainings with different seeds"),
    "fused": ("Model + first stage", "the exported model’s score plus the first stage’s score times a fitted weight"),
    "ceiling": ("Ceiling", "the best possible order of the same candidates; no reranker can do better"),
}


@dataclass(frozen=True)
class Row:
    """A row of the table; `gain` is the system's difference to the first stage in the main metric, `p` is adjusted."""

    system: str
    label: str
    meaning: str
    values: Mapping[str, Interval]
    gain: Interval | None
    p: float | None
    wins: int
    losses: int
    unchanged: int
    judged: float
    shipped: bool

    @property
    def direction(self) -> str:
        """Gain or loss if the interval of the difference excludes 0, else same."""
        if self.gain is None or self.gain.low <= 0 <= self.gain.high:
            return "same"
        return "gain" if self.gain.low > 0 else "loss"


def kind_of(gain: float) -> str:
    """Return won, lost or same for a query's gain."""
    return "won" if gain > 0 else "lost" if gain < 0 else "same"
