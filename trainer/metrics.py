"""Metrics and statistics: functions of rankings, judgements and per-query numbers.

Values come from ir_measures (trec_eval's definitions: linear gain, nDCG relative to *all* judged relevant
documents). Evaluators disagree on ties, so rankings arrive here as ordered lists and are handed over with strictly
decreasing scores: the order decides, nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np

Qrels = Mapping[str, Mapping[str, int]]
Ranking = Mapping[str, Sequence[str]]

RESAMPLES = 9999
HIGH_GRADE = 9  # above the threshold of every AP(rel=...)
BLOCK = 1 << 16  # numbers drawn at once, so that memory does not grow with the number of queries


def unknown_metrics(names: Sequence[str]) -> list[str]:
    """Those of `names` that ir_measures cannot parse or compute."""
    import ir_measures

    # gdeval takes nothing but numbers for ids.
    tools = [tool for tool in ir_measures.DefaultPipeline.providers if tool.NAME != "gdeval" and tool.is_available()]
    unknown = []
    for name in names:
        try:
            measure = ir_measures.parse_measure(name)
            measure.validate_params()  # asserts that what the measure needs is given
            numbers = [value for value in measure.params.values() if type(value) is int]
            usable = all(number > 0 for number in numbers) and any(tool.supports(measure) for tool in tools)
        except (NameError, ValueError, AttributeError, TypeError, SyntaxError, AssertionError):
            usable = False
        if not usable:
            unknown.append(name)
    return unknown


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


class Interval(NamedTuple):
    """A mean and the 95 % bootstrap interval around it."""

    mean: float
    low: float
    high: float


def bootstrap(values: Sequence[float], seed: int) -> Interval:
    """Percentile bootstrap over queries (Efron 1979), 9,999 resamples."""
    import numpy as np

    numbers = np.asarray(values, dtype=np.float64)
    rng = np.random.default_rng(seed)
    means = [numbers[rng.integers(len(numbers), size=shape)].mean(axis=1) for shape in _blocks(len(numbers))]
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return Interval(float(numbers.mean()), float(low), float(high))


def paired_p(ours: Sequence[float], theirs: Sequence[float], seed: int) -> float:
    """Two-sided p of the paired sign-flip permutation test on per-query differences.

    The randomisation test that Smucker, Allan and Carterette (CIKM 2007) recommend for IR; 9,999 resamples, so the
    smallest value is 1e-4.
    """
    import numpy as np

    differences: np.ndarray = np.asarray(ours, dtype=np.float64) - np.asarray(theirs, dtype=np.float64)
    rng = np.random.default_rng(seed)
    observed = abs(differences.mean())
    extreme = 1  # the observed assignment itself
    for shape in _blocks(len(differences)):
        signs = rng.integers(0, 2, size=shape) * 2 - 1
        extreme += np.sum(np.abs((differences * signs).mean(axis=1)) >= observed - 1e-12)
    return float(extreme / (RESAMPLES + 1))


def _blocks(values: int) -> Iterator[tuple[int, int]]:
    """Yield shapes (resamples, values) that make up all resamples.

    The numbers drawn are those of one draw a resample; for 158 values that is done in a fifth of the time.
    """
    rows = max(1, BLOCK // max(1, values))
    for start in range(0, RESAMPLES, rows):
        yield min(rows, RESAMPLES - start), values
