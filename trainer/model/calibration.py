"""Calibration: a model's scores as probabilities of relevance, saved with the model as `calibration.json`.

    P(grade >= g) = 1 / (1 + exp(-(slope * score + intercept)))

Platt scaling (Platt 1999): two numbers for each grade, fitted in `trainer/evaluation/calibration.py` on the candidates
of dev queries, as they are reranked. Slopes are positive, so the order of documents does not change. It applies to the
scores of the model alone: fused scores are standardised within a request, so they cannot be compared between requests.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import expit

from trainer.errors import ModelError
from trainer.runtime.numbers import is_finite_number
from trainer.runtime.run_folder import read_record, write_json

FILE = "calibration.json"  # in the model folder
VERSION = 1


@dataclass(frozen=True)
class Platt:
    """The curve of one grade: the probability that a document has this grade or a higher one."""

    slope: float
    intercept: float

    def probability(self, scores: np.ndarray) -> np.ndarray:
        """Return probabilities float64 of scores, in their shape."""
        return expit(self.slope * np.asarray(scores, dtype=np.float64) + self.intercept)


SIGMOID = Platt(1.0, 0.0)  # the curve of a model without calibration


@dataclass(frozen=True)
class Calibration:
    """A curve for each grade from `relevant_from` up."""

    curves: dict[int, Platt]

    @property
    def relevant(self) -> Platt:
        """The curve of the lowest relevant grade."""
        return self.curves[min(self.curves)]

    def of(self, grade: int | None) -> Platt:
        """Return the curve of a grade, None for that of being relevant; raise ModelError if it has no curve."""
        if grade is None:
            return self.relevant
        if grade not in self.curves:
            known = ", ".join(map(str, self.curves))
            raise ModelError(
                f"probability: there is no curve for grade {grade!r}; the calibration has those of {known}"
            )
        return self.curves[grade]

    def save(self, folder: Path) -> None:
        """Write calibration.json into a model folder."""
        curves = {str(grade): vars(curve) for grade, curve in self.curves.items()}
        write_json(folder / FILE, {"version": VERSION, "grades": curves})

    @classmethod
    def load(cls, folder: Path) -> Calibration | None:
        """Return the calibration in a model folder, None without the file; raises ModelError for an invalid file."""
        content = read_record(folder / FILE)
        if content is None:
            return None
        grades = content.get("grades")
        if not isinstance(grades, dict) or not grades or not all(map(_is_curve, grades.items())):
            grades = None
        if content.get("version") != VERSION or grades is None:
            raise ModelError(
                f"{folder / FILE}: not a calibration of version {VERSION}, which has `grades` with `slope` (above 0) "
                "and `intercept` for each; export the model again, or delete the file to use plain scores"
            )
        return cls({int(grade): Platt(**curve) for grade, curve in sorted(grades.items())})


def require_calibration(calibration: Calibration | None) -> Calibration:
    """Return a model's calibration; raise ModelError if it has none."""
    if calibration is None:
        raise ModelError(
            f"probability: this model has no {FILE}; use its scores, or export the model with `train`, which fits it "
            "if dev has enough judged documents"
        )
    return calibration


def _is_curve(item: tuple[str, Any]) -> bool:
    grade, curve = item
    if not (grade.isdigit() and int(grade) > 0 and isinstance(curve, dict) and curve.keys() == {"slope", "intercept"}):
        return False
    return all(map(is_finite_number, curve.values())) and curve["slope"] > 0
