"""The two-stage measurement by hand, its files, and what the terminal says about it."""

import json
from dataclasses import replace

import ir_measures
import numpy as np
import pytest

from trainer.data import build_collection
from trainer.evaluation import statistics as numbers
from trainer.evaluation.gate import ONLY_FUSED, Finding, Release
from trainer.evaluation.results import Results, adjusted, detectable_sentence, judged_sentence, show
from trainer.evaluation.two_stage import ceiling, evaluate, mean_score, order
from trainer.recipe import Data
from trainer.retriever import NOTHING, Candidates

# Two test queries (rows 0 and 1). The first has relevant documents 0 (grade 2), 1 (grade 1) and 9 (grade 2), of which
# the first stage finds 1 and 0 at ranks 2 and 3; the second has document 5, which it misses.
QRELS = {0: {0: 2, 1: 1, 9: 2, 4: 0}, 1: {5: 1}}
FOUND = [[3, 1, 0, 4], [6, 7, 8, NOTHING]]
SCORES = [[0.1, 0.9, 0.9, 0.2], [0.3, 0.2, 0.4, -np.inf]]
# Gains by rank are grade / log2(rank + 1); the best order of all judged is 2, 2, 1.
IDEAL = 2 + 2 / np.log2(3) + 1 / 2
NDCG = {
    "first_stage": (1 / np.log2(3) + 2 / 2) / IDEAL / 2,  # 0 1 2 0, and nothing for the second query
    "tuned": (1 + 2 / np.log2(3)) / IDEAL / 2,  # 1 2 0 0: documents 1 and 0 tie and stay as they were found
    "ceiling": (2 + 1 / np.log2(3)) / IDEAL / 2,  # 2 1 0 0
}
RR = {"first_stage": 0.5 / 2, "tuned": 1 / 2, "ceiling": 1 / 2}


@pytest.fixture(autouse=True)
def _fewer_resamples(monkeypatch):
    monkeypatch.setattr(numbers, "RESAMPLES", 499)


@pytest.fixture
def collection(beir, tmp_path):
    return build_collection(Data(path=beir), tmp_path / "data")


@pytest.fixture
def by_hand(collection):
    """The tiny collection with the judgements above."""
    return replace(collection, qrels={**collection.qrels, "test": QRELS})


def found(documents, queries=None):
    """Candidates as a first stage leaves them."""
    documents = np.array(documents, dtype=np.int32)
    scores = np.tile(np.arange(documents.shape[1], 0, -1, dtype=np.float32), (len(documents), 1))
    queries = np.arange(len(documents), dtype=np.int32) if queries is None else np.array(queries, dtype=np.int32)
    ranks = np.zeros((*documents.shape, 0), dtype=np.int16)
    positive = np.ones(len(documents), dtype=np.float32)
    return Candidates(queries, documents, scores, scores, positive, ranks, engines=np.array([]))


@pytest.fixture
def measured(collection):
    """All test queries of the tiny collection with random candidates, and random scores for two systems."""
    rng = np.random.default_rng(2)
    queries = collection.answerable("test")
    documents = np.array([rng.permutation(40)[:15] for _ in queries], dtype=np.int32)
    documents[2, 10:] = NOTHING
    scores = {name: rng.normal(size=documents.shape).astype(np.float32) for name in ("base", "tuned")}
    for values in scores.values():
        values[documents == NOTHING] = -np.inf
    return found(documents, queries), scores


def test_equal_scores_keep_the_order_of_the_first_stage():
    assert order(found(FOUND)) == [[3, 1, 0, 4], [6, 7, 8]]
    assert order(found(FOUND), np.array(SCORES)) == [[1, 0, 4, 3], [8, 6, 7]]
    many = np.random.default_rng(1).permutation(200)
    scores = np.random.default_rng(2).integers(0, 3, size=200)
    expected = sorted(range(200), key=lambda place: (-scores[place], place))
    assert order(found([many]), scores[None].astype(np.float32)) == [many[expected].tolist()]


def test_the_ceiling_is_the_best_order_of_the_retrieved_documents():
    assert ceiling(found(FOUND), QRELS, depth=4) == [[0, 1, 3, 4], [6, 7, 8]]


def test_systems_are_measured_by_hand_and_missed_positives_count_as_missed(by_hand):
    results = evaluate(by_hand, "test", found(FOUND), {"tuned": np.array(SCORES)}, ["nDCG@10", "RR@10", "R@4"], seed=1)

    assert (results.split, results.queries, results.depth) == ("test", 2, 4)
    assert list(results.systems) == ["first_stage", "tuned", "ceiling"]
    for system, intervals in results.systems.items():
        assert intervals["nDCG@10"].mean == pytest.approx(NDCG[system])
        assert intervals["RR@10"].mean == pytest.approx(RR[system])
        assert intervals["R@4"].mean == pytest.approx(2 / 3 / 2)  # no reranker finds more
        for interval in intervals.values():
            assert interval.low <= interval.mean <= interval.high
    assert [(row["system"], row["against"], row["metric"]) for row in results.comparisons] == [
        ("tuned", "first_stage", metric) for metric in ("nDCG@10", "RR@10", "R@4")
    ]
    # Only the first query changes: a flip of its sign is always as large, so p is 1.
    names = ("difference", "p", "wins", "losses")
    differences = {row["metric"]: tuple(row[name] for name in names) for row in results.comparisons}
    assert differences["nDCG@10"] == pytest.approx((NDCG["tuned"] - NDCG["first_stage"], 1, 1, 0))
    assert differences["RR@10"] == pytest.approx((0.25, 1, 1, 0))
    assert differences["R@4"] == pytest.approx((0, 1, 0, 0))


def test_mean_score_is_the_tables_number(by_hand):
    assert mean_score(by_hand, "test", found(FOUND), "nDCG@10") == pytest.approx(NDCG["first_stage"])
    assert mean_score(by_hand, "test", found(FOUND), "nDCG@10", np.array(SCORES)) == pytest.approx(NDCG["tuned"])


def test_queries_for_which_nothing_was_found_count_as_zero(by_hand):
    assert mean_score(by_hand, "test", found([FOUND[0], [NOTHING] * 4]), "RR@10") == pytest.approx(0.25)
    assert mean_score(by_hand, "test", found([FOUND[0]]), "RR@10") == pytest.approx(0.25)


def test_queries_without_a_positive_are_not_measured(collection):
    judged = replace(collection, qrels={**collection.qrels, "test": {**QRELS, 2: {3: 0}}})
    results = evaluate(judged, "test", found(FOUND), {"tuned": np.array(SCORES)}, ["RR@10"], seed=1)
    assert results.queries == 2
    assert results.systems["first_stage"]["RR@10"].mean == pytest.approx(0.25)


def test_a_reranker_that_knows_the_judgements_reaches_the_ceiling(collection, measured):
    candidates, _ = measured
    qrels = collection.qrels["test"]
    perfect = np.array(
        [
            [qrels[query].get(document, 0) if document != NOTHING else -np.inf for document in row]
            for query, row in zip(candidates.queries.tolist(), candidates.documents.tolist(), strict=True)
        ]
    )
    systems = evaluate(collection, "test", candidates, {"tuned": perfect}, ["nDCG@10", "RR@10", "AP"], seed=1).systems
    assert systems["tuned"] == systems["ceiling"]
    assert systems["ceiling"]["nDCG@10"].mean > systems["first_stage"]["nDCG@10"].mean


def test_results_have_the_shape_that_other_programs_read_and_come_back_as_they_were(collection, measured, tmp_path):
    candidates, scores = measured
    results = evaluate(collection, "test", candidates, scores, ["nDCG@10", "RR@10"], 1, tmp_path)

    content = json.loads((tmp_path / "results.json").read_text())
    assert set(content) >= {"split", "queries", "depth", "verdict", "shipped", "systems", "comparisons", "ways"}
    assert (content["split"], content["queries"], content["depth"]) == ("test", 8, 15)
    assert set(content["systems"]) == {"first_stage", "base", "tuned", "ceiling"}
    for metrics in content["systems"].values():
        assert list(metrics) == ["nDCG@10", "RR@10"]
        for interval in metrics.values():
            assert list(interval) == ["mean", "low", "high"]
            assert 0 <= interval["low"] <= interval["mean"] <= interval["high"] <= 1
    assert {(row["system"], row["against"]) for row in content["comparisons"]} == {
        ("base", "first_stage"),
        ("tuned", "first_stage"),
        ("tuned", "base"),
    }
    assert len(content["comparisons"]) == 6
    for row in content["comparisons"]:
        names = ["system", "against", "metric", "difference", "p", "wins", "losses", "unchanged", "detectable"]
        assert list(row) == [*names, "p_adjusted"]
        assert row["wins"] + row["losses"] + row["unchanged"] == 8
        means = [content["systems"][row[side]][row["metric"]]["mean"] for side in ("system", "against")]
        assert row["difference"] == pytest.approx(means[0] - means[1])
        assert 0 < row["p"] <= row["p_adjusted"] <= 1
    assert Results.load(tmp_path) == results


def test_runs_read_again_by_ir_measures_give_the_same_numbers(collection, measured, tmp_path):
    candidates, scores = measured
    names = ["nDCG@10", "RR@10", "AP", "R@5"]
    results = evaluate(collection, "test", candidates, scores, names, 1, tmp_path)

    assert sorted(path.name for path in tmp_path.glob("*.trec")) == ["base.trec", "first_stage.trec", "tuned.trec"]
    qrels = collection.named_qrels("test")
    measures = {name: ir_measures.parse_measure(name) for name in names}
    for system in ("first_stage", "base", "tuned"):
        run = list(ir_measures.read_trec_run(str(tmp_path / f"{system}.trec")))
        again = ir_measures.calc_aggregate(measures.values(), qrels, run)
        assert len(run) == 8 * 15 - 5
        for name in names:
            assert again[measures[name]] == pytest.approx(results.systems[system][name].mean, rel=0, abs=1e-9)
    first = (tmp_path / "tuned.trec").read_text().splitlines()[0].split()
    assert [first[1], *first[3:]] == ["Q0", "1", "15", "tuned"]


def test_results_can_be_repeated(collection, measured):
    candidates, scores = measured
    first, again = (evaluate(collection, "test", candidates, scores, ["nDCG@10"], seed=5) for _ in range(2))
    assert first == again


def test_the_table_has_a_cell_for_every_column(collection, measured):
    candidates, scores = measured
    results = evaluate(collection, "test", candidates, scores, ["nDCG@10", "RR@10", "R@5"], seed=1)
    rows = results.rows()
    assert [row[0] for row in rows] == ["first stage", "base model", "tuned model", "ceiling"]
    assert {len(row) for row in rows} == {len(results.columns())}
    assert rows[0][1].startswith(f"{results.systems['first_stage']['nDCG@10'].mean:.3f}")


@pytest.mark.parametrize(
    ("sign", "queries", "verdict"),
    [
        (1, 8, "the tuned model is better than the first stage by"),
        (1, 3, "may be chance"),  # three gains out of three: p can be no less than 2 / 8
        (-1, 8, "the tuned model is no better than the first stage (-"),
        (0, 8, "the tuned model is no better than the first stage (+0.000; "),
    ],
)
def test_the_terminal_compares_the_tuned_model_with_the_first_stage_in_a_sentence(
    collection, capsys, sign, queries, verdict
):
    # The positive stands at rank 2, between two others, and is moved up, down or not at all.
    rows = collection.answerable("test")[:queries]
    qrels = {query: {row: 1} for row, query in enumerate(rows)}
    judged = replace(collection, qrels={**collection.qrels, "test": qrels})
    candidates = found([[30, row, 31] for row in range(queries)], rows)
    scores = np.tile([2.0, 2.0 + sign * 2, 1.0], (queries, 1)) if sign else candidates.scores
    show(evaluate(judged, "test", candidates, {"tuned": scores}, ["RR@10"], seed=1))
    printed = capsys.readouterr().out
    assert verdict in printed
    assert "ceiling" in printed


def test_a_distilled_model_has_a_row_and_a_sentence_of_its_own(by_hand, capsys):
    scores = {"tuned": np.array(SCORES), "distilled": found(FOUND).scores}
    results = evaluate(by_hand, "test", found(FOUND), scores, ["nDCG@10"], seed=1)
    assert [row[0] for row in results.rows()] == [
        "first stage",
        "tuned model",
        "distilled model",
        "ceiling",
    ]
    show(results)
    printed = capsys.readouterr().out
    gain = f"{NDCG['tuned'] - NDCG['first_stage']:.3f}"
    assert f"the tuned model is ahead of the first stage by {gain}, which may be chance" in printed
    assert "the distilled model is no better than the first stage (+0.000; " in printed


def test_a_tuned_model_that_is_worse_than_its_base_is_not_praised_for_beating_the_first_stage(collection, capsys):
    rows = collection.answerable("test")[:8]
    judged = replace(
        collection, qrels={**collection.qrels, "test": {query: {row: 1} for row, query in enumerate(rows)}}
    )
    candidates = found([[30, 31, row] for row in range(8)], rows)
    scores = {"base": np.tile([0.0, 1.0, 2.0], (8, 1)), "tuned": np.tile([2.0, 0.0, 1.0], (8, 1))}
    show(evaluate(judged, "test", candidates, scores, ["RR@10"], seed=1))
    printed = capsys.readouterr().out
    assert "the tuned model is better than the first stage by 0.167" in printed
    assert (
        "the tuned model is no better than the base model (-0.500; 0 queries better, 8 worse, 0 unchanged)" in printed
    )


def test_the_untuned_first_stage_is_measured_too(by_hand, tmp_path):
    default = found([[4, 0, 1, 3], [6, 7, 8, NOTHING]])
    scores = {"tuned": np.array(SCORES)}
    results = evaluate(by_hand, "test", found(FOUND), scores, ["nDCG@10"], 0, tmp_path, default=default)
    assert list(results.systems) == ["first_stage_default", "first_stage", "tuned", "ceiling"]
    assert results.systems["first_stage"]["nDCG@10"].mean == pytest.approx(NDCG["first_stage"])
    untuned = (2 / np.log2(3) + 1 / 2) / IDEAL / 2  # 0 2 1 0, and nothing for the second query
    assert results.systems["first_stage_default"]["nDCG@10"].mean == pytest.approx(untuned)
    assert [row["against"] for row in results.comparisons] == ["first_stage"]  # nothing is compared with it
    assert (tmp_path / "first_stage_default.trec").is_file()
    assert [row[0] for row in results.rows()] == [
        "untuned first",
        "first stage",
        "tuned model",
        "ceiling",
    ]


def test_p_values_are_adjusted_within_each_metric_by_hand():
    # nDCG: .01, .04, .03 times 3, 1, 2 in their order: .03, .06 (no less than the one before), .06; RR is alone.
    given = [("nDCG@10", 0.01), ("RR@10", 0.04), ("nDCG@10", 0.04), ("nDCG@10", 0.03)]
    rows = adjusted({"metric": metric, "p": p} for metric, p in given)
    assert [row["p_adjusted"] for row in rows] == pytest.approx([0.03, 0.04, 0.06, 0.06])
    assert [row["p"] for row in rows] == [p for _, p in given]


def test_the_terminal_says_ahead_where_only_the_unadjusted_p_is_small(measured, collection, capsys):
    candidates, scores = measured
    results = evaluate(collection, "test", candidates, scores, ["nDCG@10"], seed=1)
    rows = [{**row, "difference": 0.1, "p": 0.03} for row in results.comparisons]
    show(replace(results, comparisons=rows))
    printed = " ".join(capsys.readouterr().out.split())
    assert "p: adjusted for 3 comparisons (Holm)" in printed
    assert "the tuned model is ahead of the first stage by 0.100, which may be chance (p = 0.09;" in printed
    show(replace(results, comparisons=rows[1:2]))  # a family of one
    printed = " ".join(capsys.readouterr().out.split())
    assert "the tuned model is better than the first stage by 0.100" in printed
    assert "Holm" not in printed


def test_results_of_an_earlier_version_are_read(measured, collection, tmp_path):
    candidates, scores = measured
    results = evaluate(collection, "test", candidates, scores, ["nDCG@10"], 1, tmp_path)
    content = json.loads((tmp_path / "results.json").read_text())
    del content["judged"]
    for row in content["comparisons"]:
        for name in ("p_adjusted", "unchanged", "detectable"):
            del row[name]
    (tmp_path / "results.json").write_text(json.dumps(content))
    earlier = Results.load(tmp_path)
    assert earlier.rows() == results.rows()
    show(earlier)


def test_the_smallest_detectable_difference_follows_from_the_measured_spread(by_hand, capsys):
    results = evaluate(by_hand, "test", found(FOUND), {"tuned": np.array(SCORES)}, ["RR@10"], seed=1)
    # The differences are .5 and 0: a standard deviation of .5 / sqrt(2), and a standard error of .25.
    assert results.comparisons[0]["detectable"] == pytest.approx(2.8 * 0.25)
    show(results)
    printed = " ".join(capsys.readouterr().out.split())
    assert "differences of 0.700 RR@10 or more to the first stage can be detected with these 2 queries" in printed


def test_a_single_query_has_no_detectable_difference(collection):
    judged = replace(collection, qrels={**collection.qrels, "test": {0: QRELS[0]}})
    results = evaluate(judged, "test", found(FOUND[:1]), {"tuned": np.array(SCORES[:1])}, ["RR@10"], seed=1)
    assert results.comparisons[0]["detectable"] is None
    assert "detect" not in detectable_sentence(results)


# Unjudged documents. In FOUND the first query has documents 3 (unjudged), 1 (relevant), 0 (relevant), 4 (not relevant).


def test_measures_of_judged_documents_by_hand(by_hand, capsys):
    results = evaluate(by_hand, "test", found(FOUND), {"tuned": np.array(SCORES)}, ["nDCG@10"], seed=1)
    first, tuned = (results.judged[system] for system in ("first_stage", "tuned"))
    assert list(results.judged) == ["first_stage", "tuned"]
    assert list(first) == ["Judged@10", "bpref", "condensed nDCG@10"]
    assert first["Judged@10"].mean == pytest.approx((3 / 4 + 0) / 2)
    # bpref: of three relevant documents two are retrieved, above the only one judged not relevant.
    assert first["bpref"].mean == pytest.approx(2 / 3 / 2)
    # Without document 3 the first stage has grades 1 2 0, the tuned model 1 2 0 as well.
    condensed = (1 + 2 / np.log2(3)) / IDEAL / 2
    assert first["condensed nDCG@10"].mean == pytest.approx(condensed)
    assert tuned["condensed nDCG@10"].mean == pytest.approx(condensed) == pytest.approx(NDCG["tuned"])
    assert first["condensed nDCG@10"].mean > results.systems["first_stage"]["nDCG@10"].mean
    show(results)
    printed = " ".join(capsys.readouterr().out.split())
    assert (
        "the tuned model: 38% of the top 10 are judged (first stage 38%); of judged documents alone: bpref" in printed
    )


def test_without_a_document_judged_not_relevant_only_the_share_is_measured(collection, capsys):
    judged = replace(collection, qrels={**collection.qrels, "test": {0: {0: 2, 1: 1}, 1: {5: 1}}})
    results = evaluate(judged, "test", found(FOUND), {"tuned": np.array(SCORES)}, ["nDCG@10"], seed=1)
    assert {tuple(measures) for measures in results.judged.values()} == {("Judged@10",)}
    show(results)
    assert "of judged documents alone" not in capsys.readouterr().out


def test_nothing_is_said_of_unjudged_documents_where_there_are_none(collection):
    judged = replace(collection, qrels={**collection.qrels, "test": {0: dict.fromkeys([3, 1, 0, 4], 1)}})
    results = evaluate(judged, "test", found(FOUND[:1]), {"tuned": np.array(SCORES[:1])}, ["nDCG@10"], seed=1)
    assert judged_sentence(results) == ""


def test_bpref_counts_from_the_grade_that_is_relevant(by_hand):
    strict = replace(by_hand, relevant_from=2)
    results = evaluate(strict, "test", found(FOUND), {"tuned": np.array(SCORES)}, ["nDCG@10"], seed=1)
    # Only query 0 has documents of grade 2: 0 and 9. Documents 1 and 4 are judged not relevant, and 1 is above 0.
    assert results.queries == 1
    assert results.judged["first_stage"]["bpref"].mean == pytest.approx((1 - 1 / 2) / 2)


# The verdict on the exported model


@pytest.fixture
def released(by_hand, tmp_path):
    """Results of a fitted head that is better only fused, as they come back from the file."""
    scores = {"fitted": np.array(SCORES), "fused": found(FOUND).scores}
    findings = {
        "alone": Finding("worse", "first_stage", -0.02, -0.05),
        "fused": Finding("better", "first_stage", 0.03, 0.001),
    }
    release = Release(verdict=ONLY_FUSED, shipped="fitted", findings=findings, first_stage_weight=0.3)
    results = evaluate(by_hand, "test", found(FOUND), scores, ["nDCG@10"], 1, tmp_path, release=release)
    assert Results.load(tmp_path) == results
    return results


def test_results_begin_with_the_verdict_on_the_exported_model(released, tmp_path):
    content = json.loads((tmp_path / "results.json").read_text())
    assert next(iter(content.items())) == ("verdict", "better only with first-stage scores")
    assert (content["shipped"], content["first_stage_weight"]) == ("fitted", 0.3)
    assert content["ways"]["alone"] == {"judged": "worse", "against": "first_stage", "difference": -0.02, "low": -0.05}
    assert list(content["systems"]) == ["first_stage", "fitted", "fused", "ceiling"]


def test_the_terminal_begins_with_the_verdict_and_says_that_training_did_not_help(released, capsys):
    show(released)
    shown = " ".join(capsys.readouterr().out.split())
    verdict = "evaluate better only with first-stage scores: on dev, the model alone -0.0200 against the first stage"
    assert shown.startswith(verdict)
    assert "training did not help: the model before training was the best one on dev" in shown
    assert "fitted, fused" in shown
    assert "the fitted model with first-stage scores (weight 0.3) is " in shown


def test_a_trained_model_is_not_reported_as_untrained(measured, collection, capsys):
    candidates, scores = measured
    show(evaluate(collection, "test", candidates, scores, ["nDCG@10"], seed=1))
    assert "did not help" not in capsys.readouterr().out
