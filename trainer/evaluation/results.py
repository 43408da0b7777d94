"""What an evaluation found, as a file for programs and a table for people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.evaluation.gate import NAMES, Finding, Release, leaves
from trainer.evaluation.statistics import Interval
from trainer.runtime import console
from trainer.runtime.run_folder import read_json, write_json

LABELS = {
    "first_stage_default": "first, untuned",
    "first_stage": "first stage",
    "base": "base model",
    "fitted": "fitted head",
    "tuned": "tuned model",
    "distilled": "distilled model",
    "reranked": "reranked",
    "ceiling": "ceiling",
}
BEFORE = NAMES  # what the user had
SIGNIFICANT = 0.05
UNTRAINED = "training did not help: no trained model was better on dev than the one before training, which is kept"


@dataclass(frozen=True)
class Results(Release):
    """What evaluation found; `systems` is {system: {metric: interval}}.

    `fused` among the systems is the one that is shipped, with first-stage scores beside its own.
    """

    split: str
    queries: int
    depth: int
    systems: dict[str, dict[str, Interval]]
    comparisons: list[dict[str, Any]]

    def save(self, folder: Path) -> None:
        """Write results.json; other programs read it, so its shape stays."""
        systems = {
            system: {metric: interval._asdict() for metric, interval in metrics.items()}
            for system, metrics in self.systems.items()
        }
        ways = {way: finding._asdict() for way, finding in self.ways.items()}
        write_json(folder / "results.json", {**vars(self), "systems": systems, "ways": ways})

    @classmethod
    def load(cls, folder: Path) -> Results:
        """Read what `save` wrote."""
        content = read_json(folder / "results.json")
        content["systems"] = {
            system: {metric: Interval(**interval) for metric, interval in metrics.items()}
            for system, metrics in content["systems"].items()
        }
        content["ways"] = {way: Finding(**finding) for way, finding in content["ways"].items()}
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
        """Whether some trained model was better on dev than the one before training."""
        return "tuned" in self.systems

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics; the first one chose the checkpoint and is compared."""
        return list(next(iter(self.systems.values())))

    def columns(self) -> list[str]:
        """Headings of `rows`."""
        return ["", self.metrics[0], "95 % interval", *self.metrics[1:], "gain", "p"]

    def rows(self) -> list[list[str]]:
        """The table's rows; `gain` is the first metric's difference to the first stage, `p` its paired test's."""
        gains = {row["system"]: row for row in self.compared() if row["against"] == "first_stage"}
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
        return f"{self.shipped} + first" if system == "fused" else LABELS[system]

    def compared(self) -> list[dict[str, Any]]:
        """The comparisons by the first metric."""
        return [row for row in self.comparisons if row["metric"] == self.metrics[0]]


def _p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def show(results: Results) -> None:
    """Print the verdict, the table, and in words whether what was trained helps."""
    if results.verdict:
        style = "green" if leaves(results.verdict) else "red"
        console.stage("evaluate", results.sentence, style=style)
    title = f"{results.split}: {results.queries} queries, the best {results.depth} candidates of each reranked"
    console.table(title, results.columns(), results.rows())
    if not results.training_helped:
        console.warn("evaluate", UNTRAINED)
    names = {
        **{system: f"the {label}" for system, label in LABELS.items() if system in ("fitted", "tuned", "distilled")},
        "fused": f"with the first stage's score beside it (weight {results.first_stage_weight:g}) it",
    }
    for row in results.compared():
        if row["system"] in names:
            _say(names[row["system"]], row)


def _say(what: str, row: Mapping[str, Any]) -> None:
    """One sentence about a system beside what was there before."""
    before, difference, p = BEFORE[row["against"]], row["difference"], row["p"]
    queries = f"{row['wins']} queries better, {row['losses']} worse"
    if difference > 0 and p < SIGNIFICANT:
        console.stage("evaluate", f"{what} is better than {before} by {difference:.3f} ({queries})", style="green")
    elif difference > 0:
        chance = f"which may be chance (p = {p:.2f}; {queries})"
        console.warn("evaluate", f"{what} is ahead of {before} by {difference:.3f}, {chance}")
    else:
        console.stage("evaluate", f"{what} is no better than {before} ({difference:+.3f}) ({queries})", style="red")
