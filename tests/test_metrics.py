"""Metrics against ir_measures and by hand."""

import ir_measures
import numpy as np
import pytest

from trainer.evaluation.metrics import can_choose, per_query
from trainer.recipe.metric_names import unknown_metrics


@pytest.mark.parametrize("metric", ["nDCG@10", "nDCG", "RR@10", "RR", "AP", "R@5", "P@3", "Success@1"])
def test_values_are_those_of_ir_measures_where_no_scores_tie(metric):
    rng = np.random.default_rng(5)
    documents = [f"d{number}" for number in range(30)]
    qrels, ranking = {}, {}
    for number in range(25):
        judged = rng.choice(documents, size=6, replace=False).tolist()
        qrels[f"q{number}"] = dict(zip(judged, rng.integers(0, 4, size=6).tolist(), strict=True))
        ranking[f"q{number}"] = rng.permutation(documents)[:15].tolist()
    run = {query: {document: -float(rank) for rank, document in enumerate(found)} for query, found in ranking.items()}
    direct = {row.query_id: row.value for row in ir_measures.iter_calc([ir_measures.parse_measure(metric)], qrels, run)}

    ours = per_query([metric], qrels, ranking)[metric]

    assert len(direct) == 25
    assert ours == pytest.approx(direct, abs=1e-12)
    assert len(set(ours.values())) > 1


@pytest.mark.parametrize("names", [("a", "b"), ("b", "a")])
def test_the_given_order_counts_where_evaluators_break_ties_by_document_id(names):
    # With equal scores trec_eval's nDCG puts the last id first and msmarco's RR the first id: for the same run and the
    # relevant document `a` one says rank 2 (1 / log2 3), the other rank 1.
    tied = {"q": {"a": 1.0, "b": 1.0}}
    measures = [ir_measures.nDCG @ 10, ir_measures.RR @ 10]
    direct = {str(row.measure): row.value for row in ir_measures.iter_calc(measures, {"q": {"a": 1}}, tied)}
    assert direct == pytest.approx({"nDCG@10": 0.6309297536, "RR@10": 1.0})

    first, second = names
    ranking = {"q": [first, second]}
    best = per_query(["nDCG@10", "RR@10"], {"q": {first: 1}}, ranking)
    next_best = per_query(["nDCG@10", "RR@10"], {"q": {second: 1}}, ranking)

    assert best == {"nDCG@10": {"q": 1.0}, "RR@10": {"q": 1.0}}
    assert next_best["nDCG@10"]["q"] == pytest.approx(0.6309297536)
    assert next_best["RR@10"]["q"] == 0.5


def test_graded_ndcg_by_hand():
    # Ranking c b a with grades 0 1 2:  0/log2(2) + 1/log2(3) + 2/log2(4)             = 0.6309298 + 1   = 1.6309298
    # Best of all judged (a b d):       2/log2(2) + 1/log2(3) + 1/log2(4) = 2 + 0.6309298 + 0.5          = 3.1309298
    values = per_query(["nDCG@10", "nDCG@2"], {"q": {"a": 2, "b": 1, "c": 0, "d": 1}}, {"q": ["c", "b", "a"]})
    assert values["nDCG@10"]["q"] == pytest.approx(1.6309298 / 3.1309298, abs=1e-7)
    assert values["nDCG@2"]["q"] == pytest.approx(0.6309298 / 2.6309298, abs=1e-7)


def test_queries_without_a_ranking_count_as_zero_and_those_without_judgements_do_not_count():
    qrels = {"missing": {"a": 1}, "found": {"a": 1}, "empty": {"a": 1}}
    ranking = {"unjudged": ["a"], "empty": [], "found": ["a"]}

    values = per_query(["RR@10", "nDCG@10", "R@5"], qrels, ranking)

    for numbers in values.values():
        assert list(numbers.items()) == [("missing", 0.0), ("found", 1.0), ("empty", 0.0)]


@pytest.mark.parametrize(
    ("metric", "depth", "chooses"),
    [
        *[(name, 50, True) for name in ("nDCG@10", "RR@10", "RR", "AP", "AP(rel=2)@100", "P@5", "R@10", "Success@5")],
        *[(name, 50, True) for name in ("nDCG", "Bpref", "ERR@20", "RBP(p=0.8)", "infAP")],
        *[(name, 12, True) for name in ("nDCG@20", "RR@100", "AP", "R@11")],  # deeper than what is reranked
        *[(name, 12, False) for name in ("R@12", "R@50", "P@12", "Success@12", "SetP", "SetF")],
        *[(name, 50, False) for name in ("R@50", "R@100", "NumRet", "NumQ", "NumRel", "Judged@10", "Judged@100")],
        ("nDCG@10", 1, False),
    ],
)
def test_a_metric_can_choose_only_where_a_better_order_has_a_higher_value(metric, depth, chooses):
    if unknown_metrics([metric]):
        pytest.skip(f"no tool here computes {metric}")
    assert can_choose(metric, depth) is chooses


def test_two_spellings_of_one_measure_both_get_its_values():
    values = per_query(["RR@10", "MRR@10"], {"q": {"a": 1}}, {"q": ["b", "a"]})
    assert values == {"RR@10": {"q": 0.5}, "MRR@10": {"q": 0.5}}


def test_metrics_that_exist_are_known_and_misspelt_ones_are_named():
    assert unknown_metrics(["nDCG@10", "RR@10", "R@50", "AP", "P@5", "RR(rel=2)@10", "MRR@10"]) == []
    assert unknown_metrics(["nDCG@10", "ndgc@10", "", "nDCG@x", "hits"]) == ["ndgc@10", "", "nDCG@x", "hits"]


@pytest.mark.parametrize("metric", ["R", "P", "nDCG@0", "alpha_nDCG@10", "ERR@20"])
def test_a_metric_that_parses_but_cannot_be_computed_is_refused_before_the_work(metric):
    assert unknown_metrics([metric]) == [metric]
