"""Sections of a report that only some runs have: trainings with several seeds, and guard sets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainer.evaluation.gate import GUARD_METRIC, LEVEL, GuardFinding
from trainer.evaluation.seeds import SeedResult, describe_seeds

GUARD_COLUMNS = (
    "guard set",
    "queries",
    "first stage",
    "before training",
    "exported model",
    "loss",
    "interval",
    "result",
)
GUARD_CAPTION = (
    f"{GUARD_METRIC}. The loss is that of the exported model alone against the model before training, on the same "
    f"candidates; each end of its interval holds with {100 * LEVEL:.0f} % confidence."
)


@dataclass(frozen=True)
class Section:
    """A title, an introduction, and a table with text in the cells, the first of which names the row."""

    key: str
    title: str
    text: str
    columns: tuple[str, ...]
    rows: list[list[str]]


def sections(results: Mapping[str, Any], metric: str) -> list[Section]:
    """Return the sections that results.json has content for."""
    found = []
    if rows := [SeedResult(**row) for row in results.get("seeds", ())]:
        found.append(_seeds(rows, metric))
    if rows := [GuardFinding(**row) for row in results.get("guard", ())]:
        found.append(_guard(rows))
    return found


def _seeds(seeds: list[SeedResult], metric: str) -> Section:
    metrics = list(seeds[0].means)
    rows = [
        [f"{one.seed} (best on dev)" if one.exported else str(one.seed), f"{one.dev:.4f}"]
        + [f"{one.means[name]:.4f}" for name in metrics]
        for one in seeds
    ]
    sentence = describe_seeds(seeds, metric)
    return Section("seeds", "Seeds", f"{sentence[0].upper()}{sentence[1:]}.", ("seed", f"dev {metric}", *metrics), rows)


def _guard(guard: list[GuardFinding]) -> Section:
    rows = [
        [one.set, str(one.queries), f"{one.first_stage:.4f}", f"{one.before:.4f}", f"{one.after:.4f}"]
        + [f"{one.loss:+.4f}", f"{one.low:+.4f} to {one.high:+.4f}", f"{one.judged} (allowed: {one.allowed:g})"]
        for one in guard
    ]
    return Section("guard", "Guard sets", GUARD_CAPTION, GUARD_COLUMNS, rows)
