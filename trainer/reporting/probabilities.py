"""The calibration in a report: its figures as rows of text, and the reliability diagram."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from trainer.evaluation.calibration import ON_TEST
from trainer.reporting.charts import both, element, nice_ticks, svg
from trainer.runtime.run_folder import read_record

Figures = Mapping[str, Any]
QUALITY = (
    "relevant if the grade is",
    "AUC",
    "Brier score",
    "uncalibrated Brier score",
    "calibration error",
    "uncalibrated calibration error",
)
THRESHOLD = ("probability at least", "kept per query", "precision", "recall", "empty")
LEFT, TOP, BOTTOM = 52, 26, 44  # pixels around the diagram


def read_calibration(evaluate: Path) -> dict[str, Any]:
    """Return calibration_test.json of an evaluation; empty if it is missing, or of an earlier version."""
    content = read_record(evaluate / ON_TEST) or {}
    return content if isinstance(content.get("sentence"), str) else {}


def quality_rows(calibration: Figures) -> list[list[str]]:
    """Return a row for each grade: AUC, Brier score and calibration error with intervals."""
    return [
        [
            f"{grade} or higher",
            _with_interval(one["auc"]),
            _with_interval(one["brier"]),
            _number(one["uncalibrated_brier"]["mean"]),
            _with_interval(one["ece"]),
            _number(one["uncalibrated_ece"]["mean"]),
        ]
        for grade, one in calibration.get("grades", {}).items()
    ]


def threshold_rows(calibration: Figures) -> list[list[str]]:
    """Return a row for each threshold: the documents that are left, and the queries without one."""
    return [
        [
            f"{one['probability']:.2f}",
            f"{one['kept']:.1f}",
            _number(one["precision"]),
            _number(one["recall"]),
            f"{100 * one['empty']:.0f} %",
        ]
        for one in calibration.get("thresholds", [])
    ]


def bin_rows(calibration: Figures) -> list[list[str]]:
    """Return the reliability diagram as rows of text."""
    return [
        [
            f"{one['predicted']:.3f}",
            f"{one['observed']:.3f}",
            f"{one['low']:.3f} to {one['high']:.3f}",
            str(one["pairs"]),
        ]
        for one in calibration.get("bins", [])
    ]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _with_interval(interval: Mapping[str, float | None]) -> str:
    if interval["mean"] is None:
        return "–"
    return f"{_number(interval['mean'])} [{_number(interval['low'])}, {_number(interval['high'])}]"


def reliability_diagram(bins: Sequence[Figures]) -> Markup:
    """Return the reliability diagram: the observed share by the predicted probability, with the diagonal."""
    title = "Share of documents judged relevant by predicted probability"
    return both(lambda width, kind: _diagram(bins, title, width, 300 if width > 400 else 280, kind))


def _diagram(bins: Sequence[Figures], title: str, width: int, height: int, kind: str) -> Markup:
    most = max(max(one["predicted"], one["high"]) for one in bins)
    right, bottom = width - 16, height - BOTTOM

    def x(value: float) -> float:
        return LEFT + value / most * (right - LEFT)

    def y(value: float) -> float:
        return bottom - value / most * (bottom - TOP)

    parts = []
    for value in nice_ticks(0.0, most, 5):
        label = f"{value:.2f}".removesuffix("0") if most > 0.2 else f"{value:.3f}".removesuffix("0")
        parts += [
            element("line", x1=LEFT, x2=right, y1=y(value), y2=y(value), kind="grid"),
            element("text", label, x=LEFT - 8, y=y(value) + 4, text_anchor="end", kind="tick"),
            element("text", label, x=x(value), y=bottom + 18, text_anchor="middle", kind="tick"),
        ]
    parts += [
        element("text", "share judged relevant", x=4.0, y=14.0, kind="axis"),
        element(
            "text", "predicted probability", x=(LEFT + right) / 2, y=height - 6.0, text_anchor="middle", kind="axis"
        ),
        element("line", x1=x(0), y1=y(0), x2=x(most), y2=y(most), kind="line same dashed"),
    ]
    for one in bins:
        at = x(one["predicted"])
        parts += [
            element("line", x1=at, x2=at, y1=y(one["low"]), y2=y(one["high"]), kind="line gain thin"),
            element("circle", cx=at, cy=y(one["observed"]), r=4.5, kind="dot gain"),
        ]
    return svg(width, height, title, parts, kind)
