"""Results with a language model's grades of unjudged documents, beside those with human labels alone.

A hole is an unjudged document in the top 10 of a measured system; it counts as not relevant in the results with human
labels, which are the headline. Here the grades fill the holes: 2 and 3 count as the lowest relevant grade, 0 and 1 as
not relevant, and human labels stay what they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from trainer.evaluation.agreement import RELEVANT_GRADE, Agreement
from trainer.evaluation.metrics import QrelsById, RankingById, per_query
from trainer.evaluation.results import shown_p
from trainer.evaluation.statistics import Interval, bootstrap, paired_p
from trainer.runtime import console
from trainer.runtime.run_folder import read_json, write_json

HOLES_DEPTH = 10  # ranks that are looked at for unjudged documents
FILE = "results.json"
Grades = Mapping[tuple[str, str], float]  # {(query id, document id): grade from 0 to 3}
COLUMNS = ("", "human labels", "with the judge", "95 % interval", "gain", "p", "unjudged", "left")


@dataclass(frozen=True)
class JudgedSystem:
    """A system's main metric with human labels alone and with the judge's grades.

    `gain` is the difference to the first stage with the grades, `p` its p-value; None for the first stage. `unjudged`
    is the mean number of holes in the top 10, `left` of those without a grade.
    """

    human: float
    judged: Interval
    gain: float | None
    p: float | None
    unjudged: float
    left: float


@dataclass(frozen=True)
class JudgedResults:
    """The systems with the judge's grades of `graded` of the `holes`, of which `relevant` were graded 2 or 3."""

    judge: str
    split: str
    metric: str
    queries: int
    holes: int
    graded: int
    relevant: int
    unreadable: int
    systems: dict[str, JudgedSystem]
    agreement: Agreement | None

    def save(self, folder: Path) -> None:
        """Write results.json."""
        content = asdict(self)
        for name, system in self.systems.items():
            content["systems"][name]["judged"] = system.judged._asdict()
        write_json(folder / FILE, content)

    @classmethod
    def load(cls, folder: Path) -> JudgedResults:
        """Return the results that `save` wrote."""
        content = read_json(folder / FILE)
        content["systems"] = {
            name: JudgedSystem(**{**system, "judged": Interval(**system["judged"])})
            for name, system in content["systems"].items()
        }
        content["agreement"] = content["agreement"] and Agreement(**content["agreement"])
        return cls(**content)

    @property
    def sentence(self) -> str:
        """What was graded, by which model, and how far it agrees with people."""
        agreed = self.agreement.sentence if self.agreement else "its agreement with human labels is not known"
        return (
            f"{self.judge} graded {self.graded} of the {self.holes} unjudged documents in the top {HOLES_DEPTH}, "
            f"{self.relevant} of them as relevant; {agreed}"
        )

    def rows(self, label: Callable[[str], str]) -> list[list[str]]:
        """Return the rows of the table; `label` names a system."""
        return [
            [label(name), f"{one.human:.3f}", f"{one.judged.mean:.3f}"]
            + [f"{one.judged.low:.3f} to {one.judged.high:.3f}"]
            + ["" if one.gain is None else f"{one.gain:+.3f}", "" if one.p is None else shown_p(one.p)]
            + [f"{one.unjudged:.1f}", f"{one.left:.1f}"]
            for name, one in self.systems.items()
        ]


def holes_of(qrels: QrelsById, rankings: Mapping[str, RankingById]) -> list[tuple[str, str]]:
    """Return the (query id, document id) pairs of the unjudged documents in the top 10 of any system."""
    found = {
        (query, document): None
        for ranking in rankings.values()
        for query, documents in ranking.items()
        for document in documents[:HOLES_DEPTH]
        if query in qrels and document not in qrels[query]
    }
    return list(found)


def judge_systems(
    metric: str, qrels: QrelsById, rankings: Mapping[str, RankingById], grades: Grades, relevant_from: int, seed: int
) -> dict[str, JudgedSystem]:
    """Return each system's metric with human labels alone and with the grades; the first stage is among them."""
    filled = {query: dict(judged) for query, judged in qrels.items()}
    for (query, document), grade in grades.items():
        filled[query].setdefault(document, relevant_from if grade >= RELEVANT_GRADE else 0)
    human, judged = (
        {name: list(per_query([metric], labels, ranking)[metric].values()) for name, ranking in rankings.items()}
        for labels in (qrels, filled)
    )
    first = judged["first_stage"]
    return {
        name: JudgedSystem(
            float(np.mean(human[name])),
            bootstrap(values, seed),
            None if name == "first_stage" else float(np.mean(values) - np.mean(first)),
            None if name == "first_stage" else paired_p(values, first, seed),
            _unjudged(qrels, rankings[name]),
            _unjudged(filled, rankings[name]),
        )
        for name, values in judged.items()
    }


def _unjudged(qrels: QrelsById, ranking: RankingById) -> float:
    """Return the mean number of unjudged documents in the top 10."""
    counts = [
        sum(document not in qrels[query] for document in documents[:HOLES_DEPTH])
        for query, documents in ranking.items()
    ]
    return float(np.mean(counts))


def show_judged(results: JudgedResults, label: Callable[[str], str]) -> None:
    """Print the table with the judge's grades, under the one with human labels; `label` names a system."""
    title = f"{results.split}, {results.metric} with grades of {results.judge}: not the result, but a look at the holes"
    console.table(title, list(COLUMNS), results.rows(label))
    console.stage("judge", results.sentence)
