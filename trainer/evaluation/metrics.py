"""Metrics: functions of rankings and judgements.

Values come from ir_measures (trec_eval's definitions: linear gain, nDCG relative to *all* judged relevant
documents). Evaluators disagree on ties, so rankings arrive here as ordered lists and are handed over with strictly
decreasing scores: the order decides, nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Qrels = Mapping[str, Mapping[str, int]]
Ranking = Mapping[str, Sequence[str]]

HIGH_GRADE = 9  # above the threshold of every AP(rel=...)


def can_choose(name: str, depth: int) -> bool:
    """Return whether a metric tells a good order of the first `depth` candidates from a bad one.

    Found by trying: a relevant document at the top must be worth more than one at the end, and a document judged not
    relevant at the top no more than an unjudged one. R@50 with 50 candidates or fewer, NumRet and Judged@10 fail.
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


def per_query(metrics: Sequence[str], qrels: Qrels, ranking: Ranking) -> dict[str, dict[str, float]]:
    """{metric: {query id: value}} of rankings (best document first).

    Every query of `qrels` counts; one without a ranking has the metric's value for an empty answer, 0.
    """
    import ir_measures

    measures = {name: ir_measures.parse_measure(name) for name in metrics}
    run = {
        query: {document: float(len(documents) - place) for place, document in enumerate(documents)}
        for query, documents in ranking.items()
        if documents
    }
    values = {str(measure): dict.fromkeys(qrels, 0.0) for measure in measures.values()}
    plain = {query: dict(judged) for query, judged in qrels.items()}
    for row in ir_measures.iter_calc(list(set(measures.values())), plain, run):
        values[str(row.measure)][row.query_id] = float(row.value)
    return {name: values[str(measure)] for name, measure in measures.items()}  # two names may mean one measure
