"""The results of an evaluation: a file for programs, and a table on the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.evaluation.gate import BASELINES, Finding, Release, made_warning, passes
from trainer.evaluation.statistics import Interval
from trainer.runtime import console
from trainer.runtime.run_folder import read_json, write_json

LABELS = {  # of at most 16 characters: with longer ones the intervals wrap on a terminal of 80 columns
    "first_stage_default": "untuned first",
    "first_stage": "first stage",
    "base": "base model",
    "fitted": "fitted head",
    "tuned": "tuned model",
    "distilled": "distilled model",
    "reranked": "reranked",
    "ceiling": "ceiling",
}
KEYS = {"findings": "ways"}  # in results.json, which other programs read
SIGNIFICANT = 0.05
UNTRAINED = "training did not help: the model before training was the best one on dev, so that one is used"


@dataclass(frozen=True)
class Results(Release):
    """The results on one split; `systems` is {system: {metric: interval}}.

    The system `fused` is the exported one with its scores fused with the first stage's.
    """

    split: str
    queries: int
    depth: int
    systems: dict[str, dict[str, Interval]]
    comparisons: list[dict[str, Any]]

    def save(self, folder: Path) -> None:
        """Write results.json, whose keys other programs read."""
        systems = {
            system: {metric: interval._asdict() for metric, interval in metrics.items()}
            for system, metrics in self.systems.items()
        }
        findings = {mode: finding._asdict() for mode, finding in self.findings.items()}
        content = {**vars(self), "systems": systems, "findings": findings}
        write_json(folder / "results.json", {KEYS.get(name, name): value for name, value in content.items()})

    @classmethod
    def load(cls, folder: Path) -> Results:
        """Return the results that `save` wrote."""
        content = read_json(folder / "results.json")
        content["systems"] = {
            system: {metric: Interval(**interval) for metric, interval in metrics.items()}
            for system, metrics in content["systems"].items()
        }
        content["findings"] = {mode: Finding(**finding) for mode, finding in content.pop("ways").items()}
        return cls(**content | {"made": tuple(content.get("made", ()))})

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
        """Return the table's rows; `gain` is the difference to the first stage in the first metric, `p` its p-value."""
        gains = {row["system"]: row for row in self.main_comparisons() if row["against"] == "first_stage"}
        rows = []
        for system, intervals in self.systems.items():
            first, *others = intervals.values()
            compared = gains.get(system)
            gain = [f"{compared['difference']:+.3f}", _p(compared["p"])] if compared else ["", ""]
            interval = f"{first.low:.3f} to {first.high:.3f}"
            rows.append(
                [self.label(system), f"{first.mean:.3f}", interval, *(f"{other.mean:.3f}" for other in others), *gain]
            )
        return rows

    def label(self, system: str) -> str:
        """Return the system's name in the table."""
        return f"{self.shipped}, fused" if system == "fused" else LABELS[system]

    def main_comparisons(self) -> list[dict[str, Any]]:
        """Return the comparisons by the first metric."""
        return [row for row in self.comparisons if row["metric"] == self.metrics[0]]


def _p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def show(results: Results) -> None:
    """Print the verdict, the table, and a sentence for each comparison of a trained system with a baseline."""
    if results.verdict:
        style = "green" if passes(results.verdict) else "red"
        console.stage("evaluate", results.sentence, style=style)
    if warning := made_warning(results.made):
        console.stage("evaluate", warning, style="red")
    title = f"{results.split}: {results.queries} queries, the first {results.depth} candidates of each reranked"
    title += "; fused: with first-stage scores" if "fused" in results.systems else ""
    title += "; ceiling: perfect order of the candidates"
    console.table(title, results.columns(), results.rows())
    if not results.training_helped:
        console.warn("evaluate", UNTRAINED)
    names = {
        **{system: f"the {label}" for system, label in LABELS.items() if system in ("fitted", "tuned", "distilled")},
        "fused": f"the {LABELS[results.shipped]} with first-stage scores (weight {results.first_stage_weight:g})",
    }
    for row in results.main_comparisons():
        if row["system"] in names:
            _show_comparison(names[row["system"]], row)


def _show_comparison(system: str, row: Mapping[str, Any]) -> None:
    """Print one sentence that compares a system with a baseline."""
    baseline, difference, p = BASELINES[row["against"]], row["difference"], row["p"]
    queries = f"{row['wins']} queries better, {row['losses']} worse"
    if difference > 0 and p < SIGNIFICANT:
        console.stage("evaluate", f"{system} is better than {baseline} by {difference:.3f} ({queries})", style="green")
    elif difference > 0:
        chance = f"which may be chance (p = {p:.2f}; {queries})"
        console.warn("evaluate", f"{system} is ahead of {baseline} by {difference:.3f}, {chance}")
    else:
        message = f"{system} is no better than {baseline} ({difference:+.3f}; {queries})"
        console.stage("evaluate", message, style="red")
