"""The report of mining: tables for the terminal, a page with examples, and JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from trainer.data import Collection
from trainer.mining.filter import (
    ABOVE_SHARE,
    DUPLICATE,
    NEGATIVE,
    OUTSIDE,
    POSITIVE,
    TEACHER,
    UNSCORED,
    USABLE,
)
from trainer.mining.sample import Mined
from trainer.recipe import Mine
from trainer.runtime import console
from trainer.runtime.run_folder import write_json

EXAMPLES = 5  # queries shown as examples
QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)
BARS = 20  # bins of the histograms


@dataclass(frozen=True)
class Report:
    """Counts of a mining run, of candidates unless named otherwise; every candidate is a negative or has one reason.

    `passed_over` are the counts of candidates filtered out, by reason.
    """

    queries: int
    queries_without_positive: int
    queries_with_fewer_negatives: int
    queries_without_negative: int
    queries_without_threshold: int
    candidates: int
    negatives: int
    judged_negatives: int
    corpus_negatives: int
    passed_over: dict[str, int]
    negative_ranks: dict[str, float]
    similarities: dict[str, dict[str, float]]
    teacher: dict[str, dict[str, float]]

    @classmethod
    def of(cls, mined: Mined, collection: Collection, section: Mine) -> Report:
        """Return the report of the groups mined with the settings of `section`."""
        verdicts, candidates = mined.verdicts, mined.verdicts.candidates
        reasons = verdicts.reasons
        positives = reasons == POSITIVE
        limited = section.max_share_of_positive is not None
        filtered = {name: int(np.sum(reasons == reason)) for reason, name in names(section).items()}
        filtered["usable, but not needed"] = int(np.sum((reasons == USABLE) & ~mined.chosen))
        groups = {"positives": positives, "negatives": mined.chosen}
        return cls(
            queries=len(candidates.queries),
            queries_without_positive=len(collection.qrels["train"]) - len(candidates.queries),
            queries_with_fewer_negatives=int(np.sum(mined.sampled < mined.wanted)),
            queries_without_negative=int(np.sum(mined.sampled == 0)),
            queries_without_threshold=int(np.isnan(candidates.positive_similarity).sum()) if limited else 0,
            candidates=int(np.sum(candidates.documents >= 0)),
            negatives=int(mined.sampled.sum()),
            judged_negatives=mined.judged_negatives,
            corpus_negatives=mined.corpus_negatives,
            passed_over={name: count for name, count in filtered.items() if count},
            negative_ranks=_quantiles(np.nonzero(mined.chosen)[1] + 1),
            similarities={name: _quantiles(candidates.similarities[mask]) for name, mask in groups.items()},
            teacher={name: _quantiles(verdicts.teacher[mask]) for name, mask in groups.items()},
        )

    @property
    def summary(self) -> str:
        """One line with the number of negatives, for the terminal."""
        line = f"{self.negatives} negatives for {self.queries} queries"
        if self.queries_with_fewer_negatives:
            line += f" ({self.queries_with_fewer_negatives} got fewer than requested)"
        return line

    def show(self) -> None:
        """Print the reasons for filtering and the distributions of positives and negatives."""
        rows = [[name, f"{count:,}", f"{count / self.candidates:.1%}"] for name, count in self._reasons()]
        console.table("mine: candidates that did not become negatives", ["reason", "candidates", "share"], rows)
        rows = [
            [f"{what} of {name}", *(f"{value:.2f}" for value in quantiles.values())]
            for what, both in (("similarity", self.similarities), ("teacher score", self.teacher))
            for name, quantiles in both.items()
            if quantiles
        ]
        rows.append(["rank of negatives", *(f"{value:.0f}" for value in self.negative_ranks.values())])
        console.table("", ["", "least", "25 %", "median", "75 %", "most"], rows)

    def write(self, mined: Mined, collection: Collection, folder: Path) -> None:
        """Write `report.md` for people, with histograms and examples, and `report.json` for programs."""
        write_json(folder / "report.json", asdict(self))
        counts = {name: value for name, value in asdict(self).items() if isinstance(value, int)}
        lines = ["# Mined negatives", "", "| what | count |", "| --- | ---: |"]
        lines += [f"| {name.replace('_', ' ')} | {value} |" for name, value in counts.items()]
        lines += ["", "## Passed over", "", "| reason | candidates | share |", "| --- | ---: | ---: |"]
        lines += [f"| {name} | {count} | {count / max(1, self.candidates):.1%} |" for name, count in self._reasons()]
        ranks = ", ".join(f"{value:.0f}" for value in self.negative_ranks.values()) or "none"
        lines += ["", f"Ranks of the negatives (least, quartiles, most): {ranks}", ""]
        lines += _histograms(mined) + ["## Examples", ""] + _examples(mined, collection)
        (folder / "report.md").write_text("\n".join(lines), encoding="utf-8")

    def _reasons(self) -> list[tuple[str, int]]:
        return sorted(self.passed_over.items(), key=lambda item: -item[1])


def names(section: Mine) -> dict[int, str]:
    """Return the names of the reasons, with the limits set in the recipe."""
    return {
        POSITIVE: "judged relevant",
        NEGATIVE: "judged not relevant",
        DUPLICATE: "near-duplicate of a positive",
        ABOVE_SHARE: f"above {section.max_share_of_positive or 0:.0%} of the positive",
        TEACHER: f"teacher score within {section.teacher_margin} of the positive's",
        OUTSIDE: "outside the rank window",
        UNSCORED: "no score from the teacher",
    }


def _quantiles(values: np.ndarray) -> dict[str, float]:
    """Return {share: quantile} of the values that are not NaN; empty if there is none."""
    known = values[~np.isnan(values)]
    if not len(known):
        return {}
    return {
        f"{share:g}": round(float(value), 4)
        for share, value in zip(QUANTILES, np.quantile(known, QUANTILES), strict=True)
    }


def _histograms(mined: Mined) -> list[str]:
    """Return the similarities of positives and negatives as text histograms over the same bins."""
    similarities, positives = mined.verdicts.candidates.similarities, mined.verdicts.reasons == POSITIVE
    values = [similarities[mask][~np.isnan(similarities[mask])] for mask in (positives, mined.chosen)]
    if not all(map(len, values)):
        return []
    edges = np.histogram_bin_edges(np.concatenate(values), bins=BARS)
    shares = [np.histogram(numbers, edges)[0] / len(numbers) for numbers in values]
    largest = max(share.max() for share in shares)
    rows = [
        f"{edge:8.3f}  {'+' * round(30 * positive / largest):<30}  {'-' * round(30 * negative / largest)}"
        for edge, positive, negative in zip(edges, *shares, strict=False)
    ]
    head = f"{'':8}  {'positives that were retrieved':<30}  negatives"
    return ["## Similarities to the query", "", "```", head, *rows, "```", ""]


def _examples(mined: Mined, collection: Collection) -> list[str]:
    lines = []
    for group in mined.groups[:: max(1, len(mined.groups) // EXAMPLES)][:EXAMPLES]:
        lines += [f"**{console.markdown(collection.queries[group.query]['text'])}**", ""]
        lines += [
            f"- positive ({grade}): {_short(collection, row)}"
            for row, grade in zip(group.positives, group.grades, strict=True)
        ]
        lines += [f"- negative: {_short(collection, row)}" for row in group.negatives[:3]] + [""]
    return lines


def _short(collection: Collection, row: int) -> str:
    document = collection.documents[row]
    beginning = " ".join(document["passage"].split())[:160]
    return f"**{console.markdown(document['id'])}** {console.markdown(beginning)}"
