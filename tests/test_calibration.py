"""Calibration: Platt's curve against scipy and by hand, and what it is worth on data with known probabilities."""

import json

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import mannwhitneyu

from trainer.errors import ModelError
from trainer.evaluation import calibration
from trainer.evaluation.calibration import Pairs, auc, bins, brier, ece, fit, measure
from trainer.model.calibration import Calibration, Platt

TRUE = Platt(0.8, -1.5)


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
    on_test = measure(found, drawn(seed=2), 1, seed=3)
    assert on_test.brier.high < on_test.uncalibrated_brier.low
    assert on_test.ece.high < on_test.uncalibrated_ece.low
    assert on_test.ece.mean < 0.03
    assert on_test.separates
    assert json.loads(json.dumps(on_test.described()))["separates"] is True


def test_scores_that_say_nothing_separate_nothing():
    pairs = drawn(seed=4)
    noise = pairs._replace(scores=np.random.default_rng(5).normal(size=pairs.scores.shape))
    on_test = measure(Calibration({1: Platt(1.0, 0.0)}), noise, 1, seed=3)
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
    assert [one.pairs for one in bins(np.linspace(0, 1, 25), np.zeros(25, dtype=bool))] == [
        3,
        3,
        3,
        3,
        3,
        2,
        2,
        2,
        2,
        2,
    ]


def test_thresholds_by_hand():
    # probabilities 1/(1 + e^-s) of scores ln 9, 0, -ln 9 are .9, .5, .1
    scores = np.log([[9.0, 1.0, 1 / 9], [1 / 9, 1 / 9, 1 / 9]])
    pairs = Pairs(scores, np.array([[1, 0, 1], [1, 0, 0]]), np.array([[True] * 3, [True, True, False]]))
    rows = {one.probability: one for one in measure(Calibration({1: Platt(1.0, 0.0)}), pairs, 1, seed=1).thresholds}
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


def test_bins_are_as_many_as_named():
    assert len(bins(np.linspace(0, 1, 100), np.zeros(100, dtype=bool))) == calibration.BINS
