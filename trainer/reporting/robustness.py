"""Sections of a report that only some runs have: seeds, guard sets, teachers by endpoint, and grades of a judge."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.evaluation.gate import GUARD_METRIC, LEVEL, GuardFinding
from trainer.evaluation.holes import COLUMNS, HOLES_DEPTH, JudgedResults
from trainer.evaluation.seeds import SeedResult, describe_seeds
from trainer.reporting.facts import Facts

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


def sections(facts: Facts) -> list[Section]:
    """Return the sections that the run has content for."""
    found = []
    if rows := [SeedResult(**row) for row in facts.results.get("seeds", ())]:
        found.append(_seeds(rows, facts.metric))
    if rows := [GuardFinding(**row) for row in facts.results.get("guard", ())]:
        found.append(_guard(rows))
    if judged := facts.judged_holes:
        found.append(_judged(judged, facts.label))
    if facts.agreements:
        found.append(_teachers(facts.agreements))
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


def _judged(judged: JudgedResults, label: Callable[[str], str]) -> Section:
    text = (
        f"{judged.sentence}. {judged.metric} with these grades in place of the unjudged documents, which is not the "
        "result of this run: its figures above are from human labels alone. Gains are to the first stage; unjudged and "
        f"left are documents of the top {HOLES_DEPTH} without a label, and without a grade too."
    )
    return Section("judge", "With grades of a language model", text, ("system", *COLUMNS[1:]), judged.rows(label))


def _teachers(agreements: Sequence[tuple[str, Mapping[str, Any]]]) -> Section:
    rows = [
        [one["endpoint"], stage, one["measure"], f"{one['value']:.3f}", f"{one['low']:.3f} to {one['high']:.3f}"]
        + [str(one["queries"]), one["split"], one["others"]]
        for stage, one in agreements
    ]
    columns = ("teacher", "stage", "measure", "agreement", "95 % interval", "queries", "split", "besides relevant")
    text = "Scores of models behind an endpoint, compared with human labels before they were used."
    return Section("teachers", "Teachers by endpoint", text, columns, rows)
