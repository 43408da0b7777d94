"""The agreement of an endpoint's scores or grades with human labels, on a sample of queries.

Each query of the sample has a relevant document and another one, so that half of the documents are relevant by the
labels. AUC is then the share of the queries whose relevant document has the higher score, and Cohen's kappa is the mean
of twice the share of right grades minus 1.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from trainer.data import Collection
from trainer.evaluation.statistics import bootstrap

if TYPE_CHECKING:
    from trainer.retriever import Candidates

FEWEST = 10  # queries of a sample, below which nothing is measured
RELEVANT_GRADE = 1.5  # expected grade from which a document answers the query: the digits 2 and 3
Measure = Literal["AUC", "kappa", "share of relevant documents graded 2 or 3"]
AUC: Measure = "AUC"
KAPPA: Measure = "kappa"
SHARE: Measure = "share of relevant documents graded 2 or 3"


class Sample(NamedTuple):
    """Pairs of rows (query, document): the first half has the relevant documents, the other half the others.

    The others are judged not relevant, or unjudged candidates. Without others there is only the first half.
    """

    split: str
    relevant: list[tuple[int, int]]
    others: list[tuple[int, int]]
    judged: bool

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """All pairs."""
        return [*self.relevant, *self.others]


@dataclass(frozen=True)
class Agreement:
    """The agreement on a sample, with its 95 % interval over the queries."""

    measure: Measure
    value: float
    low: float
    high: float
    queries: int
    split: str
    others: str  # the documents beside the relevant ones: judged not relevant, unjudged, or none

    @property
    def sentence(self) -> str:
        """The agreement in a sentence."""
        beside = f", each with a relevant document and one {self.others}" if self.others else ""
        return (
            f"agreement with the human labels: {self.measure} {self.value:.2f} (95 % interval {self.low:.2f} to "
            f"{self.high:.2f}) on {self.queries} {self.split} queries{beside}"
        )

    def as_json(self) -> dict[str, Any]:
        """Return the values for a file."""
        return asdict(self)


def sample_labels(
    collection: Collection, split: str, count: int, seed: int, candidates: Candidates | None = None
) -> Sample | None:
    """Return a sample of at most `count` queries asked by people; None if there are too few.

    Queries with a document that is judged not relevant are preferred. If they are too few, an unjudged candidate that
    is no near-duplicate of a relevant document takes its place; without `candidates` there are no other documents.
    """
    rng = np.random.default_rng(seed)
    real = [query for query in collection.answerable(split) if query not in collection.made]
    order = [real[index] for index in rng.permutation(len(real))]
    judged = {query: collection.judged_negatives(split, query) for query in order}
    found = _drawn(collection, split, {query: rows for query, rows in judged.items() if rows}, count, rng)
    if len(found.relevant) >= FEWEST or not order:
        return found if order else None
    if candidates is not None:
        unjudged = _unjudged(collection, split, candidates)
        found = _drawn(collection, split, {q: unjudged[q] for q in order if unjudged.get(q)}, count, rng)
        return found._replace(judged=False) if len(found.relevant) >= FEWEST else None
    alone = _drawn(collection, split, {query: [query] for query in order}, count, rng)
    return alone._replace(others=[]) if len(alone.relevant) >= FEWEST else None


def _drawn(
    collection: Collection, split: str, others: dict[int, list[int]], count: int, rng: np.random.Generator
) -> Sample:
    """Return a relevant document and one of the others for the first queries."""
    queries = list(others)[:count]
    relevant = [(query, int(rng.choice(collection.positives(split, query)))) for query in queries]
    return Sample(split, relevant, [(query, int(rng.choice(others[query]))) for query in queries], True)


def _unjudged(collection: Collection, split: str, candidates: Candidates) -> dict[int, list[int]]:
    """Return the candidates of each query that are not judged, nor near-duplicates of a relevant document."""
    alike, found = collection.first_alike, {}
    for index, query in enumerate(candidates.queries.tolist()):
        near = {int(alike[row]) for row in collection.positives(split, query)}
        known = {*collection.qrels[split][query], *collection.self_documents.get(query, ())}
        found[query] = [row for row in candidates.found(index) if row not in known and int(alike[row]) not in near]
    return found


def agreement_of(sample: Sample, scores: np.ndarray, graded: bool, seed: int) -> Agreement | None:
    """Return the agreement of the scores (pairs,) of a sample; None if too few queries have both scores.

    With `graded` the scores are grades from 0 to 3, else they are compared within each query alone.
    """
    size = len(sample.relevant)
    relevant, others = scores[:size], scores[size:]
    known = ~np.isnan(relevant) & (~np.isnan(others) if len(others) else True)
    if known.sum() < FEWEST:
        return None
    measure, values = _values(relevant[known], others[known[: len(others)]], graded)
    interval = bootstrap(values.tolist(), seed)
    beside = ("judged not relevant" if sample.judged else "unjudged candidate") if sample.others else ""
    return Agreement(measure, *interval, queries=int(known.sum()), split=sample.split, others=beside)


def _values(relevant: np.ndarray, others: np.ndarray, graded: bool) -> tuple[Measure, np.ndarray]:
    """Return the measure with its value for each query, whose mean is the measure of the sample."""
    if not len(others):
        return SHARE, (relevant >= RELEVANT_GRADE).astype(np.float64)
    if graded:
        right = (relevant >= RELEVANT_GRADE).astype(np.float64) + (others < RELEVANT_GRADE)
        return KAPPA, right - 1
    return AUC, (relevant > others) + 0.5 * (relevant == others)


def refusal(agreement: Agreement, least: float | None) -> str:
    """Return the reason why a teacher with this agreement is refused; empty if it is not."""
    if least is None or agreement.value >= least:
        return ""
    key = "least_kappa" if agreement.measure == KAPPA else "least_auc"
    return (
        f"{agreement.sentence}, less than {least:g} (endpoints.{key}); look at the answers and the labels, name "
        f"another teacher, or lower endpoints.{key}"
    )
