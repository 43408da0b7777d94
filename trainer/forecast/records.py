"""What is known of the speed of one model, and how it is trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from trainer.recipe import Train

Clock = Callable[[], float]  # seconds


class PairSpeed(NamedTuple):
    """Seconds of a cross-encoder: for loading, for each pair, and for each optimizer step; and its size."""

    load: float
    exact: float  # scoring a pair in float32, as in evaluations
    score: float  # scoring a pair in the precision of training
    learn: float  # a pair forward and backward; 0 where the model is not trained
    step: float  # an optimizer step
    precision: str
    parameters: int
    trained: int  # parameters with a gradient
    activations: float  # bytes kept for the backward pass, for each token
    tokens: float  # mean tokens of a pair


@dataclass(frozen=True)
class Training:
    """How a cross-encoder is trained in this run: section and kind of head."""

    section: Train
    fresh_head: bool


class TextSpeed(NamedTuple):
    """Seconds of a bi-encoder: for loading, for each document and for each query; and its dimensions."""

    load: float
    document: float
    query: float
    dimensions: int
