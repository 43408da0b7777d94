"""Measures of rankings that take into account that some documents are unjudged.

nDCG and most other metrics count an unjudged document as not relevant, so a system that finds good documents which
nobody judged looks too bad. The share of judged documents shows how large that effect can be. bpref (Buckley and
Voorhees, SIGIR 2004) and the main metric of condensed lists (Sakai, SIGIR 2007), from which unjudged documents are
removed, do not have it: they compare the order of judged documents alone. Both need documents that were judged not
relevant.
"""

from __future__ import annotations

from collections.abc import Mapping

from trainer.evaluation.metrics import QrelsById, RankingById, per_query
from trainer.evaluation.results import JUDGED
from trainer.evaluation.statistics import Interval, bootstrap

BPREF = "bpref"


def measure_unjudged(
    metric: str, qrels: QrelsById, rankings: Mapping[str, RankingById], relevant_from: int, seed: int
) -> dict[str, dict[str, Interval]]:
    """Return {system: {measure: interval}}: Judged@10, bpref, and `metric` of condensed lists.

    The last two are left out where no document is judged not relevant: then every order of the judged documents is
    perfect.
    """
    negatives = any(grade < relevant_from for grades in qrels.values() for grade in grades.values())
    measured: dict[str, dict[str, Interval]] = {}
    for system, ranking in rankings.items():
        values = per_query([JUDGED], qrels, ranking)
        if negatives:
            (values[BPREF],) = per_query([f"Bpref(rel={relevant_from})"], qrels, ranking).values()
            (values[condensed(metric)],) = per_query([metric], qrels, condense(ranking, qrels)).values()
        measured[system] = {name: bootstrap(list(by_query.values()), seed) for name, by_query in values.items()}
    return measured


def condensed(metric: str) -> str:
    """Return the name of a metric of condensed lists."""
    return f"condensed {metric}"


def condense(ranking: RankingById, qrels: QrelsById) -> RankingById:
    """Return the rankings without unjudged documents."""
    return {
        query: [document for document in documents if document in qrels.get(query, {})]
        for query, documents in ranking.items()
    }
