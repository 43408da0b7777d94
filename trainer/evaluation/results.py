"""The results of an evaluation: a file for programs, and a table on the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.evaluation.gate import BASELINES, KEPT, LOST, Finding, GuardFinding, Release, made_warning, passes
from trainer.evaluation.seeds import SeedResult, describe_seeds
from trainer.evaluation.statistics import Interval, holm
from trainer.runtime import console
from trainer.runtime.run_folder import read_json, write_json

LABELS = {  # of at most 16 characters: with longer ones the intervals wrap on a terminal of 80 columns
    "first_stage_default": "untuned first",
    "first_stage": "first stage",
    "base": "base model",
    "fitted": "fitted model",
    "tuned": "tuned model",
    "distilled": "distilled model",
    "seeds": "mean of seeds",
    "other_libraries": "other libraries",
    "reranked": "reranked",
    "ceiling": "ceiling",
}
KEYS = {"findings": "ways"}  # in results.json, which other programs read
TABLES = ("systems", "judged")
JUDGED = "Judged@10"  # in `judged`
SIGNIFICANT = 0.05
NOT_RUN = "training did not run (train.epochs: 0): the model before training is evaluated and exported"
UNTRAINED = "training did not help: the model before training was the best one on dev, so that one is used"


@dataclass(frozen=True)
class Results(Release):
    """The results on one split; `systems` is {system: {metric: interval}}.

    The system `fused` is the exported one with its scores fused with the first stage's. `judged` is {system: {measure:
    interval}} of measures that take unjudged documents into account (trainer/evaluation/unjudged.py).
    """

    split: str
    queries: int
    depth: int
    systems: dict[str, dict[str, Interval]]
    comparisons: list[dict[str, Any]]
    judged: dict[str, dict[str, Interval]] = field(default_factory=dict)
    seeds: tuple[SeedResult, ...] = ()  # of the trainings with several seeds

    def save(self, folder: Path) -> None:
        """Write results.json, whose keys other programs read."""
        tables = {
            name: {
                system: {metric: interval._asdict() for metric, interval in metrics.items()}
                for system, metrics in getattr(self, name).items()
            }
            for name in TABLES
        }
        findings = {mode: finding._asdict() for mode, finding in self.findings.items()}
        content = {**vars(self), **tables, "findings": findings}
        for key in ("guard", "seeds"):  # only in the file if the recipe asks for them
            if rows := content.pop(key):
                content[key] = [row._asdict() for row in rows]
        write_json(folder / "results.json", {KEYS.get(name, name): value for name, value in content.items()})

    @classmethod
    def load(cls, folder: Path) -> Results:
        """Return the results that `save` wrote."""
        content = read_json(folder / "results.json")
        for name in TABLES:
            content[name] = {
                system: {metric: Interval(**interval) for metric, interval in metrics.items()}
                for system, metrics in content.get(name, {}).items()  # earlier versions wrote no `judged`
            }
        content["findings"] = {mode: Finding(**finding) for mode, finding in content.pop("ways").items()}
        content["made"] = tuple(content.get("made", ()))
        content["guard"] = tuple(GuardFinding(**row) for row in content.get("guard", ()))
        content["seeds"] = tuple(SeedResult(**row) for row in content.get("seeds", ()))
        return cls(**content)

    @property
    def table(self) -> list[dict[str, float | str]]:
        """The means of each system: a dict with its name under `system` and each metric under its own."""
        return [
            {"system": system, **{metric: interval.mean for metric, interval in metrics.items()}}
            for system, metrics in self.systems.items()
        ]

    @property
    def training_helped(self) -> bool:
        """True if a trained model was better on dev than the model before training."""
        return "tuned" in self.systems

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics; the first one chose the checkpoint, and systems are compared by it."""
        return list(next(iter(self.systems.values())))

    def columns(self) -> list[str]:
        """Return the headings of `rows`."""
        return ["", self.metrics[0], "95 % interval", *self.metrics[1:], "gain", "p"]

    def rows(self) -> list[list[str]]:
        """Return the table's rows; `gain` is the difference to the first stage in the first metric, `p` its p-value.

        The p-value is adjusted for all comparisons by this metric.
        """
        gains = {row["system"]: row for row in self.main_comparisons() if row["against"] == "first_stage"}
        rows = []
        for system, intervals in self.systems.items():
            first, *others = intervals.values()
            compared = gains.get(system)
            gain = [f"{compared['difference']:+.3f}", shown_p(compared["p_adjusted"])] if compared else ["", ""]
            interval = f"{first.low:.3f} to {first.high:.3f}"
            rows.append(
                [self.label(system), f"{first.mean:.3f}", interval, *(f"{other.mean:.3f}" for other in others), *gain]
            )
        return rows

    def label(self, system: str) -> str:
        """Return the system's name in the table."""
        return f"{self.shipped}, fused" if system == "fused" else LABELS.get(system, system)

    def main_comparisons(self) -> list[dict[str, Any]]:
        """Return the comparisons by the first metric, with adjusted p-values."""
        return [row for row in adjusted(self.comparisons) if row["metric"] == self.metrics[0]]


def adjusted(comparisons: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the comparisons with `p_adjusted`, Holm's correction over the family: all comparisons by one metric.

    The values are in results.json too, but not in that of earlier versions.
    """
    families: dict[str, list[dict[str, Any]]] = {}
    rows = [{**row} for row in comparisons]
    for row in rows:
        families.setdefault(row["metric"], []).append(row)
    for family in families.values():
        for row, p in zip(family, holm([row["p"] for row in family]), strict=True):
            row["p_adjusted"] = p
    return rows


def shown_p(p: float) -> str:
    """Return a p-value as text."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def show(results: Results) -> None:
    """Print the verdict, the table, and a sentence for each comparison of a trained system with a baseline."""
    if results.verdict:
        style = "green" if passes(results.verdict) else "red"
        console.stage("evaluate", results.sentence, style=style)
    if warning := made_warning(results.made):
        console.stage("evaluate", warning, style="red")
    for finding in results.guard:
        console.stage("evaluate", finding.sentence, style={KEPT: "green", LOST: "red"}.get(finding.judged, ""))
    title = f"{results.split}: {results.queries} queries, the first {results.depth} candidates of each reranked"
    title += "; fused: with first-stage scores" if "fused" in results.systems else ""
    title += "; ceiling: perfect order of the candidates"
    family = len(results.main_comparisons())
    title += f"; p: adjusted for {family} comparisons (Holm)" if family > 1 else ""
    console.table(title, results.columns(), results.rows())
    if results.seeds:
        console.stage("evaluate", describe_seeds(results.seeds, results.metrics[0]))
    if not results.training_helped:
        console.warn("evaluate", UNTRAINED if results.trained else NOT_RUN)
    names = {
        **{
            system: f"the {label}"
            for system, label in LABELS.items()
            if system in ("fitted", "tuned", "distilled", "seeds")
        },
        "fused": f"the {LABELS[results.shipped]} with first-stage scores (weight {results.first_stage_weight:g})",
    }
    for row in results.main_comparisons():
        if row["system"] in names:
            _show_comparison(names[row["system"]], row)
    for sentence in (detectable_sentence(results), judged_sentence(results)):
        if sentence:
            console.stage("evaluate", sentence)


def detectable_of(comparisons: Iterable[Mapping[str, Any]], system: str) -> float | None:
    """Return a system's smallest detectable difference to the first stage; None if it is unknown."""
    rows = (row for row in comparisons if (row["system"], row["against"]) == (system, "first_stage"))
    return next((row.get("detectable") for row in rows), None)


def detectable_sentence(results: Results) -> str:
    """Return a sentence on the smallest difference to the first stage that can be detected; empty if it is unknown."""
    least = detectable_of(results.main_comparisons(), results.shipped)
    if not least:
        return ""
    return (
        f"differences of {least:.3f} {results.metrics[0]} or more to the first stage can be detected with these "
        f"{results.queries} queries (power 80 %; measured spread)"
    )


def judged_sentence(results: Results) -> str:
    """Return a sentence on unjudged documents in the top 10; empty if there are none, or nothing is known."""
    first, ours = (results.judged.get(system, {}) for system in ("first_stage", results.shipped))
    if not ours or not first or min(first[JUDGED].mean, ours[JUDGED].mean) == 1:
        return ""
    others = [f"{name} {ours[name].mean:.3f} ({first[name].mean:.3f})" for name in ours if name != JUDGED]
    shares = f"{ours[JUDGED].mean:.0%} of the top 10 are judged (first stage {first[JUDGED].mean:.0%})"
    alone = f"; of judged documents alone: {', '.join(others)}" if others else ""
    return f"the {LABELS[results.shipped]}: {shares}{alone}"


def _show_comparison(system: str, row: Mapping[str, Any]) -> None:
    """Print one sentence that compares a system with a baseline."""
    baseline, difference, p = BASELINES[row["against"]], row["difference"], row["p_adjusted"]
    queries = f"{row['wins']} queries better, {row['losses']} worse"
    queries += f", {row['unchanged']} unchanged" if "unchanged" in row else ""  # earlier versions did not count them
    if difference > 0 and p < SIGNIFICANT:
        console.stage("evaluate", f"{system} is better than {baseline} by {difference:.3f} ({queries})", style="green")
    elif difference > 0:
        chance = f"which may be chance (p = {p:.2f}; {queries})"
        console.warn("evaluate", f"{system} is ahead of {baseline} by {difference:.3f}, {chance}")
    else:
        message = f"{system} is no better than {baseline} ({difference:+.3f}; {queries})"
        console.stage("evaluate", message, style="red")
