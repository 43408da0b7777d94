"""Retrieval metrics of rankings, by ir_measures.

ir_measures follows trec_eval's definitions: linear gain, nDCG relative to *all* judged relevant documents. Evaluators
disagree on ties, so rankings are passed to it with strictly decreasing scores: only their order counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import ir_measures

QrelsById = Mapping[str, Mapping[str, int]]  # {query id: {document id: grade}}
RankingById = Mapping[str, Sequence[str]]  # {query id: document ids, best first}

HIGH_GRADE = 9  # above the threshold of every AP(rel=...)


def can_choose(name: str, depth: int) -> bool:
    """Return whether a metric can choose a checkpoint: whether it prefers a good order of the first `depth` candidates.

    It is tried on three orders: a relevant document at the top must have a higher value than one at the end, and a
    document judged not relevant at the top must not raise the value. R@50 with 50 candidates or fewer, NumRet and
    Judged@10 fail.
    """
    if depth < 2:
        return False
    unjudged = [f"unjudged-{number}" for number in range(depth - 2)]
    orders = {
        "best": ["relevant", "other", *unjudged],
        "worst": [*unjudged, "other", "relevant"],
        "misled": ["other", *unjudged, "relevant"],
    }
    qrels = {order: {"relevant": HIGH_GRADE, "other": 0} for order in orders}
    values = per_query([name], qrels, orders)[name]
    return values["best"] > values["worst"] >= values["misled"]


def per_query(metrics: Sequence[str], qrels: QrelsById, ranking: RankingById) -> dict[str, dict[str, float]]:
    """Return {metric: {query id: value}} of rankings.

    Every query of `qrels` has a value; that of a query without a ranking is 0.
    """
    measures = {name: ir_measures.parse_measure(name) for name in metrics}
    run = {
        query: {document: float(len(documents) - index) for index, document in enumerate(documents)}
        for query, documents in ranking.items()
        if documents
    }
    values = {str(measure): dict.fromkeys(qrels, 0.0) for measure in measures.values()}
    plain = {query: dict(judged) for query, judged in qrels.items()}
    for row in ir_measures.iter_calc(list(set(measures.values())), plain, run):
        values[str(row.measure)][row.query_id] = float(row.value)
    return {name: values[str(measure)] for name, measure in measures.items()}  # two names may mean one measure


def best_order(rows: Sequence[int], grades: Mapping[int, int], depth: int) -> list[int]:
    """Return the best order that a reranker of the first `depth` candidates could give; the others follow unchanged."""
    return sorted(rows[:depth], key=lambda row: -grades.get(row, 0)) + list(rows[depth:])
