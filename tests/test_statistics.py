"""Intervals and tests of per-query numbers against scipy and by hand."""

import numpy as np
import pytest
import scipy.stats

from trainer.evaluation import statistics
from trainer.evaluation.statistics import bootstrap, holm, paired_p


def test_bootstrap_interval_holds_the_mean_and_is_as_wide_as_theory_says():
    values = np.random.default_rng(1).normal(0.5, 0.2, size=400)
    interval = bootstrap(values.tolist(), seed=7)
    half = 1.96 * values.std() / np.sqrt(400)

    assert interval.mean == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_bootstrap_interval_is_that_of_scipy():
    values = np.random.default_rng(2).beta(0.4, 0.4, size=60)
    theirs = scipy.stats.bootstrap((values,), np.mean, method="percentile", rng=np.random.default_rng(3))
    ours = bootstrap(values.tolist(), seed=7)
    width = ours.high - ours.low
    assert ours[1:] == pytest.approx(tuple(theirs.confidence_interval), abs=0.05 * width)


def test_bootstrap_is_seeded_and_equal_values_have_an_interval_of_width_0():
    values = np.random.default_rng(0).random(50).tolist()
    assert bootstrap(values, seed=1) == bootstrap(values, seed=1) != bootstrap(values, seed=2)
    assert bootstrap([0.5] * 20, seed=1) == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("count", [1, 3, 50, 158])
def test_resamples_drawn_in_blocks_are_those_drawn_one_by_one(count, monkeypatch):
    ours, theirs = np.random.default_rng(5).random((2, count))
    in_blocks = bootstrap(ours, seed=7), paired_p(ours, theirs, seed=7)
    monkeypatch.setattr(statistics, "BLOCK", 1)  # one resample a block
    assert (bootstrap(ours, seed=7), paired_p(ours, theirs, seed=7)) == in_blocks


@pytest.mark.parametrize(
    ("differences", "exact"),
    [
        # All eight sign flips of three differences; p is the share of them whose |sum| reaches the observed one.
        ([1, 2, 5], 2 / 8),  # observed 8: only +++ and ---
        ([-1, 2, 5], 4 / 8),  # observed 6: those and ++- with its mirror
        ([1, -2, 5], 6 / 8),  # observed 4
        ([-1, -2, 5], 8 / 8),  # observed 2, the least there is
        ([0, 0, 0], 1),
    ],
)
def test_paired_p_of_three_differences_by_hand(differences, exact):
    assert paired_p([0.1 * value for value in differences], [0, 0, 0], seed=3) == pytest.approx(exact, abs=0.02)


@pytest.mark.parametrize("gain", [0.0, 0.1, 0.2])
def test_paired_p_is_that_of_scipys_permutation_test(gain):
    rng = np.random.default_rng(11)
    theirs = rng.random(12)
    ours = theirs + rng.normal(gain, 0.2, size=12)
    # n_resamples above 2**12: scipy goes through all sign flips.
    exact = scipy.stats.permutation_test((ours - theirs,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert paired_p(ours, theirs, seed=3) == pytest.approx(exact.pvalue, abs=0.02)


def test_paired_p_is_two_sided_and_at_least_one_in_its_resamples():
    ahead, behind = np.full(40, 0.6), np.full(40, 0.5)
    assert paired_p(ahead, behind, seed=3) == 1e-4
    assert paired_p(behind, ahead, seed=3) == 1e-4
    assert paired_p(ahead, ahead, seed=3) == 1.0


def test_paired_p_is_seeded():
    rng = np.random.default_rng(4)
    ours, theirs = rng.random(30), rng.random(30)
    assert paired_p(ours, theirs, seed=1) == paired_p(ours, theirs, seed=1)
    assert paired_p(ours, theirs, seed=1) != paired_p(ours, theirs, seed=2)


def test_holm_by_hand():
    # Sorted .01, .02, .03, .4 times 4, 3, 2, 1: .04, .06, .06 (no less than the one before), .4
    assert holm([0.03, 0.4, 0.01, 0.02]) == pytest.approx([0.06, 0.4, 0.04, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_rejects_what_the_step_down_procedure_rejects():
    rng = np.random.default_rng(3)
    for _ in range(200):
        p_values = (rng.random(6) ** 3).tolist()
        rejected = set()
        for done, index in enumerate(np.argsort(p_values).tolist()):
            if p_values[index] > 0.05 / (6 - done):
                break
            rejected.add(index)
        assert {index for index, p in enumerate(holm(p_values)) if p <= 0.05} == rejected


@pytest.mark.slow
def test_intervals_and_tests_keep_their_promise_on_simulated_collections(scripts):
    from simulate_statistics import simulate

    rates = simulate(queries=100, collections=1000)
    assert 0.93 <= rates.covered <= 0.97
    assert 0.03 <= rates.false_positive <= 0.07  # 5 % of 1,000, two standard deviations of .7 % to each side
    assert rates.family_wise <= 0.065
