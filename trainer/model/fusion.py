"""Fusion: the weighted sum of a model's scores and the first stage's, each standardised over a query's documents.

    fused = z(model's scores) + weight * z(first-stage numbers)

z subtracts the mean over the query's documents and divides by the standard deviation; equal numbers give zeros. The
weights are fitted in `trainer/evaluation/fusion.py`. Here they are applied, and saved as `fusion.json`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from trainer.errors import ModelError
from trainer.model.scores import standardised
from trainer.runtime.numbers import is_finite_number
from trainer.runtime.run_folder import read_record, write_json

FILE = "fusion.json"  # in the model folder
VERSION = 1
LISTS = 200  # most candidate lists that a weight is fitted to: two parameters need no more
Kind = Literal["scores", "order"]


@dataclass(frozen=True)
class Fusion:
    """The weights of the first stage in a fusion with a model.

    `scores` is the weight of first-stage scores, `order` the weight of the documents' order if there are no scores.
    `alone` is false if the model was shown to be better than the first stage only in a fusion with it.
    """

    scores: float
    order: float
    alone: bool = True

    def save(self, folder: Path) -> None:
        """Write fusion.json into a model folder."""
        write_json(folder / FILE, {"version": VERSION, **asdict(self)})

    @classmethod
    def load(cls, folder: Path) -> Fusion | None:
        """Return the weights in a model folder, None without the file; raises ModelError for an invalid file."""
        content = read_record(folder / FILE)
        if content is None:
            return None
        weights = [content.get("scores"), content.get("order")]
        usable = all(map(_is_weight, weights)) and isinstance(content.get("alone"), bool)
        if content.get("version") != VERSION or not usable:
            raise ModelError(
                f"{folder / FILE}: not a fusion of version {VERSION}, which has `scores` and `order` (weights of 0 and "
                "more) and `alone` (true or false); export the model again, or delete the file to rank without it"
            )
        return cls(float(weights[0]), float(weights[1]), content["alone"])  # pyright: ignore[reportArgumentType]

    def apply(self, scores: np.ndarray, first: np.ndarray, kind: Kind) -> np.ndarray:
        """Return the fused scores (documents,) of one query."""
        found = np.ones((1, len(scores)), dtype=bool)
        return fuse(scores[None], first[None], getattr(self, kind), found)[0]


def _is_weight(value: Any) -> bool:
    return is_finite_number(value) and value >= 0


def fuse(scores: np.ndarray, first: np.ndarray, weight: float, found: np.ndarray) -> np.ndarray:
    """Return fused scores (queries, documents) float64, -inf where `found` is false because there is no document."""
    both = standardised(scores, found) + weight * standardised(first, found)
    return np.where(found, both, -np.inf)


def numbers_of_order(documents: int) -> np.ndarray:
    """Return substitutes for first-stage scores if only the order is known: -log2(1 + rank), rank from 1.

    They decrease with the rank as nDCG's discount does, fast at the top and slowly further down.
    """
    return -np.log2(2.0 + np.arange(documents))


def first_stage_numbers(
    documents: int, scores: Sequence[float] | np.ndarray | None, by_order: bool
) -> tuple[np.ndarray, Kind] | None:
    """Return the first-stage numbers (documents,) of a query and their kind; None if nothing is fused.

    Raises ValueError for scores that do not fit the documents.
    """
    if by_order:
        return numbers_of_order(documents), "order"
    if scores is None:
        return None
    try:
        numbers = np.asarray(scores, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise ValueError("first_stage_scores must be numbers, one for each document") from None
    if numbers.shape != (documents,):
        given = len(numbers) if numbers.ndim == 1 else f"an array of shape {numbers.shape}"
        raise ValueError(f"first_stage_scores must hold one number for each of the {documents} documents, not {given}")
    if not np.isfinite(numbers).all():
        raise ValueError(f"first_stage_scores must be finite; {(~np.isfinite(numbers)).sum()} of them are not")
    return numbers, "scores"
