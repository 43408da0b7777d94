"""Calibration: Platt's curve against scipy and by hand, and what it is worth on data with known probabilities."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import binomtest, mannwhitneyu

from trainer.errors import ModelError
from trainer.evaluation import calibration
from trainer.evaluation.calibration import ON_TEST, Pairs, auc, brier, calibrate, ece, fit, measure, reliability, share
from trainer.model.calibration import Calibration, Platt
from trainer.retriever import NOTHING, Candidates

TRUE = Platt(0.8, -1.5)


@pytest.fixture(autouse=True)
def _fewer_resamples(monkeypatch):
    monkeypatch.setattr(calibration, "RESAMPLES", 199)


def drawn(queries=200, depth=20, seed=1, curve=TRUE, grades=1) -> Pairs:
    """Pairs whose relevance is drawn with the probabilities of a curve."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(0, 3, size=(queries, depth))
    relevant = rng.random(scores.shape) < curve.probability(scores)
    grade = relevant * rng.integers(1, grades + 1, size=scores.shape)
    return Pairs(scores, grade, rng.random(scores.shape) < 0.9)


def test_probabilities_by_hand():
    # 0.5 * 2 - 1 = 0: one half; 0.5 * 2 - 1 + ln 3: three quarters
    assert Platt(0.5, -1.0).probability(np.array([2.0])) == pytest.approx([0.5])
    assert Platt(0.5, np.log(3) - 1.0).probability(np.array([2.0])) == pytest.approx([0.75])
    assert Platt(1.0, 0.0).probability(np.array([-1e9, 1e9])).tolist() == [0.0, 1.0]


def test_the_curve_that_drew_the_labels_is_found():
    found = fit(drawn(queries=2000))
    assert found is not None
    assert found.relevant.slope == pytest.approx(TRUE.slope, rel=0.05)
    assert found.relevant.intercept == pytest.approx(TRUE.intercept, rel=0.05)


def test_the_fit_is_the_maximum_of_the_likelihood_of_platts_targets():
    pairs = drawn(queries=30)
    scores, relevant = pairs.scores[pairs.present], pairs.grades[pairs.present] > 0
    targets = np.where(relevant, (relevant.sum() + 1) / (relevant.sum() + 2), 1 / ((~relevant).sum() + 2))

    def loss(parameters):
        exponent = parameters[0] * scores + parameters[1]
        return -(targets * -np.logaddexp(0, -exponent) + (1 - targets) * -np.logaddexp(0, exponent)).mean()

    expected = minimize(loss, [0.1, 0.1], method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-12}).x
    found = fit(pairs)
    assert found is not None
    assert (found.relevant.slope, found.relevant.intercept) == pytest.approx(tuple(expected), abs=1e-4)


def test_scores_that_separate_all_labels_leave_the_curve_finite():
    scores = np.concatenate([np.full((10, 10), -5.0), np.full((10, 10), 5.0)])
    found = fit(Pairs(scores, (scores > 0).astype(int), np.ones(scores.shape, dtype=bool)))
    assert found is not None
    assert 0.98 < found.relevant.probability(np.array([5.0]))[0] < 1
    assert 0 < found.relevant.probability(np.array([-5.0]))[0] < 0.02


def test_higher_grades_have_their_own_curves_below_the_first():
    found = fit(drawn(queries=1000, grades=3))
    assert found is not None
    assert sorted(found.curves) == [1, 2, 3]
    at = [found.curves[grade].probability(np.array([3.0]))[0] for grade in (1, 2, 3)]
    assert at[0] > at[1] > at[2]


@pytest.mark.parametrize("fault", ["few positives", "few negatives", "falling", "constant grades", "nothing"])
def test_what_cannot_be_calibrated_is_refused(fault):
    pairs = drawn(queries=60)
    if fault == "few positives":
        pairs = pairs._replace(grades=np.where(pairs.scores > 7.5, pairs.grades, 0))
    elif fault == "few negatives":
        pairs = pairs._replace(grades=np.ones_like(pairs.grades))
    elif fault == "falling":
        pairs = pairs._replace(scores=-pairs.scores)
    elif fault == "constant grades":
        pairs = pairs._replace(grades=np.zeros_like(pairs.grades))
    else:
        pairs = pairs._replace(present=np.zeros_like(pairs.present))
    assert fit(pairs) is None


def test_calibration_lowers_both_errors_on_other_queries():
    found = fit(drawn(seed=1))
    assert found is not None
    on_test = measure(found.relevant, drawn(seed=2), 1, seed=3)
    assert on_test.brier.high < on_test.uncalibrated_brier.low
    assert on_test.ece.high < on_test.uncalibrated_ece.low
    assert on_test.ece.mean < 0.03
    assert on_test.separates
    assert json.loads(json.dumps(on_test.described()))["separates"] is True


def test_scores_that_say_nothing_separate_nothing():
    pairs = drawn(seed=4)
    noise = pairs._replace(scores=np.random.default_rng(5).normal(size=pairs.scores.shape))
    on_test = measure(Platt(1.0, 0.0), noise, 1, seed=3)
    assert on_test.auc.low < 0.5 < on_test.auc.high
    assert not on_test.separates


def test_auc_is_that_of_mann_and_whitney_with_ties():
    rng = np.random.default_rng(6)
    scores, relevant = rng.integers(0, 8, 300).astype(float), rng.random(300) < 0.3
    expected = mannwhitneyu(scores[relevant], scores[~relevant]).statistic / (relevant.sum() * (~relevant).sum())
    assert auc(scores, relevant) == pytest.approx(expected)
    assert np.isnan(auc(scores, np.zeros(300, dtype=bool)))


def test_brier_and_ece_by_hand():
    probabilities, relevant = np.array([0.2, 0.8, 0.6, 0.4]), np.array([False, True, False, True])
    assert brier(probabilities, relevant) == pytest.approx((0.04 + 0.04 + 0.36 + 0.36) / 4)
    assert ece(probabilities, relevant) == pytest.approx((0.2 + 0.6 + 0.6 + 0.2) / 4)  # a bin for each pair


def test_bins_of_the_diagram_hold_equally_many_pairs_and_cover_what_is_true():
    pairs = drawn(queries=1000)
    bins = reliability(TRUE.probability(pairs.scores), pairs.grades > 0, pairs.present)
    assert len(bins) == calibration.BINS
    assert max(one.pairs for one in bins) - min(one.pairs for one in bins) <= 1
    assert sum(one.pairs for one in bins) == pairs.present.sum()
    assert [one.predicted for one in bins] == sorted(one.predicted for one in bins)
    assert sum(one.low <= one.predicted <= one.high for one in bins) >= 8  # of ten 95 % intervals


def test_the_interval_of_a_share_is_wilsons_and_wider_where_relevant_pairs_gather():
    relevant = np.arange(60) % 4 == 0
    wilson = binomtest(int(relevant.sum()), 60).proportion_ci(method="wilson")
    assert share(relevant, np.arange(60)) == pytest.approx((wilson.low, wilson.high), abs=1e-3)
    low, high = share(np.sort(relevant), np.arange(60) // 5)  # three queries hold all of the relevant pairs
    assert low < wilson.low
    assert high > wilson.high
    nothing = share(np.zeros(60, dtype=bool), np.arange(60))
    assert nothing[0] == 0
    assert 0.04 < nothing[1] < 0.08  # about 3.84 / (60 + 3.84)


def test_thresholds_by_hand():
    # probabilities 1/(1 + e^-s) of scores ln 9, 0, -ln 9 are .9, .5, .1
    scores = np.log([[9.0, 1.0, 1 / 9], [1 / 9, 1 / 9, 1 / 9]])
    pairs = Pairs(scores, np.array([[1, 0, 1], [1, 0, 0]]), np.array([[True] * 3, [True, True, False]]))
    rows = {one.probability: one for one in measure(Platt(1.0, 0.0), pairs, 1, seed=1).thresholds}
    assert rows[0.5][1:] == pytest.approx((1.0, 1 / 2, 1 / 3, 1 / 2))
    assert rows[0.6][1:] == pytest.approx((0.5, 1.0, 1 / 3, 1 / 2))
    assert rows[0.05][1:] == pytest.approx((2.5, 3 / 5, 1.0, 0.0))


def test_it_is_kept_with_the_model(tmp_path):
    kept = Calibration({1: Platt(0.8, -1.5), 2: Platt(0.5, -3.0)})
    kept.save(tmp_path)
    assert Calibration.load(tmp_path) == kept
    assert Calibration.load(tmp_path / "other") is None


@pytest.mark.parametrize(
    "content",
    [
        {"version": 2, "grades": {"1": {"slope": 1.0, "intercept": 0.0}}},
        {"version": 1, "grades": {}},
        {"version": 1, "grades": {"1": {"slope": -1.0, "intercept": 0.0}}},
        {"version": 1, "grades": {"1": {"slope": True, "intercept": 0.0}}},
        {"version": 1, "grades": {"1": {"slope": 1.0}}},
        {"version": 1, "grades": {"x": {"slope": 1.0, "intercept": 0.0}}},
        {"version": 1, "grades": [1]},
        {},
    ],
)
def test_a_file_that_cannot_be_used_is_an_error(tmp_path, content):
    (tmp_path / "calibration.json").write_text(json.dumps(content))
    with pytest.raises(ModelError, match="not a calibration of version 1"):
        Calibration.load(tmp_path)


def test_a_grade_has_a_curve_of_its_own(tmp_path):
    kept = Calibration({1: Platt(0.8, -1.5), 2: Platt(0.5, -3.0)})
    assert kept.of(None) == kept.of(1) == Platt(0.8, -1.5)
    assert kept.of(2) == Platt(0.5, -3.0)
    with pytest.raises(ModelError, match="no curve for grade 3; the calibration has those of 1, 2"):
        kept.of(3)


def listed(pairs: Pairs) -> tuple[Candidates, dict[int, dict[int, int]]]:
    """The pairs as candidates and judgements: document n of a query is the one in column n."""
    queries, depth = pairs.scores.shape
    documents = np.where(pairs.present, np.arange(depth, dtype=np.int32), NOTHING)
    none = np.zeros((queries, depth, 0), dtype=np.int16)
    rows, scores = np.arange(queries, dtype=np.int32), np.zeros((queries, depth), dtype=np.float32)
    candidates = Candidates(rows, documents, scores, scores, np.ones(queries, np.float32), none, np.array([]))
    return candidates, {row: dict(enumerate(grades)) for row, grades in enumerate(pairs.grades.tolist())}


@pytest.fixture
def calibrated(tmp_path):
    """`calibrated(dev, test)` calibrates with these pairs; returns the sentence and the two files."""

    def calibrated(dev, test):
        (dev_found, dev_qrels), (test_found, test_qrels) = listed(dev), listed(test)
        collection = SimpleNamespace(relevant_from=1, qrels={"dev": dev_qrels, "test": test_qrels})
        candidates = {"dev": dev_found, "test": test_found}
        sentence = calibrate(collection, candidates, dev.scores, test.scores, 3, tmp_path)  # pyright: ignore[reportArgumentType]
        return sentence, json.loads((tmp_path / ON_TEST).read_text()), Calibration.load(tmp_path)

    return calibrated


def test_the_files_hold_every_grade_and_the_sentence(calibrated):
    sentence, on_test, kept = calibrated(drawn(seed=1, grades=2), drawn(seed=2, grades=2))
    assert sentence == on_test["sentence"]
    assert sentence.startswith("scores are calibrated on dev: calibration error on test 0.0")
    assert list(on_test["grades"]) == ["1", "2"] == list(map(str, kept.curves))
    for one in on_test["grades"].values():
        assert one["ece"]["high"] < one["uncalibrated_ece"]["low"]
    assert on_test["bins"] == on_test["grades"]["1"]["bins"]


@pytest.mark.parametrize(
    ("dev", "reason"),
    [
        (
            drawn(queries=60)._replace(grades=np.zeros((60, 20), dtype=int)),
            "the reranked dev candidates hold only 0 relevant documents, and 20 of each kind are needed",
        ),
        (
            drawn(queries=2, depth=4)._replace(present=np.ones((2, 4), dtype=bool), grades=np.eye(2, 4, dtype=int)),
            "the reranked dev candidates hold only 2 relevant and 6 other documents, and 20 of each kind are needed",
        ),
        (
            drawn(queries=200)._replace(scores=-drawn(queries=200).scores),
            "on dev, higher scores do not mean more relevant documents",
        ),
    ],
)
def test_an_impossible_case_is_refused_with_its_reason(calibrated, dev, reason):
    sentence, on_test, kept = calibrated(dev, drawn(seed=2))
    assert sentence == f"scores are not calibrated: {reason}"
    assert on_test == {"sentence": sentence}
    assert kept is None


def test_that_no_threshold_separates_well_enough_is_said(calibrated):
    noise = np.random.default_rng(5).normal(size=(200, 20))
    sentence, on_test, kept = calibrated(drawn(seed=1), drawn(seed=4)._replace(scores=noise))
    assert "no threshold separates relevant documents well enough (AUC 0.5" in sentence or "(AUC 0.4" in sentence
    assert on_test["separates"] is False
    assert kept is not None


def test_a_test_split_without_a_relevant_candidate_leaves_valid_json(calibrated):
    sentence, on_test, _ = calibrated(drawn(seed=1), drawn(seed=2)._replace(grades=np.zeros((200, 20), dtype=int)))
    assert on_test["auc"] == {"mean": None, "low": None, "high": None}
    assert on_test["thresholds"][0]["recall"] is None
    assert "NaN" not in json.dumps(on_test)
    assert "no threshold" in sentence
