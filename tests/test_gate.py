"""The release gate on constructed dev values: its rule, its choice repeated, and how often it is wrong."""

import json
from pathlib import Path

import numpy as np
import pytest

from trainer.data import build_collection
from trainer.evaluation import gate
from trainer.evaluation.fusion import Weights, choose_weight
from trainer.evaluation.gate import (
    BETTER,
    LEVEL,
    MARGIN,
    ONLY_FUSED,
    UNCLEAR,
    WORSE,
    DevChoice,
    Finding,
    best_mean,
    compare,
    outcome_of,
    passes,
    resamples,
    verdict_of,
    weakest_finding,
)
from trainer.evaluation.release import decide_release
from trainer.evaluation.two_stage import query_scores
from trainer.model import Fusion
from trainer.model.fusion import Kind
from trainer.recipe import Data
from trainer.retriever import Candidates

QUERIES = 60


@pytest.fixture(autouse=True)
def _fewer_resamples(monkeypatch):
    monkeypatch.setattr(gate, "RESAMPLES", 500)


def values(mean: float, spread: float = 0.2, queries: int = QUERIES, seed: int = 1) -> np.ndarray:
    """Values (queries,) of exactly this mean and standard deviation."""
    numbers = np.random.default_rng(seed).normal(size=queries)
    return (numbers - numbers.mean()) / numbers.std() * spread + mean


def single(mean: float, spread: float = 0.2, against: float = 0.0) -> Finding:
    choice = DevChoice(values(mean, spread)[None])
    return weakest_finding(choice, {"first_stage": np.full(QUERIES, against)}, seed=3)


def test_one_alternative_has_its_plain_mean_and_the_bound_of_a_normal_mean():
    found = single(0.1)
    assert found.difference == pytest.approx(0.1, abs=1e-12)
    error = 0.2 / np.sqrt(QUERIES - 1)
    assert found.low == pytest.approx(0.1 - 2.391 * error, abs=0.35 * error)  # Student's, of .99 and 59 degrees
    assert found.against == "first_stage"


@pytest.mark.parametrize(
    ("difference", "low", "expected"),
    [
        (0.02, -0.0099, BETTER),
        (0.02, 0.01, BETTER),
        (0.02, -0.01, UNCLEAR),  # a loss of .01 is not ruled out
        (0.0001, -0.2, UNCLEAR),
        (0.0, 0.0, WORSE),
        (-0.001, -0.002, WORSE),  # too small to matter, and yet no gain
    ],
)
def test_the_outcome_follows_from_difference_and_lower_bound(difference, low, expected):
    assert outcome_of(difference, low) == expected


@pytest.mark.parametrize(
    ("mean", "spread", "expected"),
    [(0.1, 0.2, BETTER), (0.03, 0.2, UNCLEAR), (0.03, 0.01, BETTER), (-0.03, 0.2, WORSE)],
)
def test_the_outcome_on_dev_values(mean, spread, expected):
    assert single(mean, spread).judged == expected


def test_equal_values_are_no_gain():
    assert single(0.4, 0.0, against=0.4).judged == WORSE


@pytest.mark.parametrize(
    ("alone", "fused", "verdict", "released"),
    [
        (BETTER, BETTER, "better", True),
        (BETTER, WORSE, "better", True),
        (UNCLEAR, BETTER, "better only with first-stage scores", True),
        (WORSE, BETTER, "better only with first-stage scores", True),
        (UNCLEAR, UNCLEAR, "cannot tell", False),
        (WORSE, UNCLEAR, "cannot tell", False),
        (UNCLEAR, WORSE, "cannot tell", False),
        (WORSE, WORSE, "worse", False),
    ],
)
def test_the_verdict_follows_from_both_modes(alone, fused, verdict, released):
    found = [Finding(one, "first_stage", 0.0, 0.0) for one in (alone, fused)]
    assert verdict_of(found[0], found[1]) == verdict
    assert passes(verdict) == released


def test_a_mode_is_better_only_where_it_beats_every_baseline():
    choice = DevChoice(values(0.6, 0.05)[None])
    baselines = {"first_stage": np.full(QUERIES, 0.4), "base": values(0.6, 0.05)}
    found = weakest_finding(choice, baselines, seed=3)
    assert (found.judged, found.against) == (WORSE, "base")
    assert weakest_finding(choice, {"first_stage": baselines["first_stage"]}, seed=3).judged == BETTER


def test_the_choice_is_repeated_in_each_resample_and_its_optimism_is_subtracted():
    # Eight models that are equally good: the best of them on dev is so by chance.
    many = np.stack([values(0.0, 0.2, seed=seed) for seed in range(8)])
    many += np.random.default_rng(9).normal(0, 0.026, size=8)[:, None]  # as means of 60 queries scatter
    chosen = int(np.argmax(many.mean(axis=1)))
    counts, zero = list(resamples(QUERIES, 3)), np.zeros(QUERIES)
    repeated = compare(DevChoice(many, chosen), "first_stage", zero, counts)
    alone = compare(DevChoice(many[chosen][None]), "first_stage", zero, counts)
    assert alone.difference == pytest.approx(many[chosen].mean())
    assert repeated.difference < alone.difference - 0.01
    assert repeated.low < alone.low
    by_hand = []
    for block in counts:
        for row in block:
            place = int(np.argmax(many @ row))
            by_hand.append(many[place] @ row / QUERIES - many[place].mean())
    wider = 2.391 / 2.3263 * np.sqrt(QUERIES / (QUERIES - 1))
    assert repeated.low == pytest.approx(many[chosen].mean() - np.quantile(by_hand, LEVEL) * wider, abs=1e-4)


def test_the_choice_of_a_weight_is_repeated_by_its_own_rule():
    asked = []

    def choose(numbers: np.ndarray, counts: np.ndarray) -> np.ndarray:
        asked.append(len(counts))
        return choose_weight(numbers, counts)

    choice = DevChoice(np.stack([values(0.1), values(0.11, seed=2)]), 0, choose)
    compare(choice, "first_stage", np.zeros(QUERIES), resamples(QUERIES, 3))
    assert sum(asked) == 500


def test_resamples_are_draws_of_all_queries_the_same_for_a_seed_in_blocks_or_not(monkeypatch):
    whole = np.concatenate(list(resamples(40, 7)))
    assert whole.shape == (500, 40)
    assert (whole.sum(axis=1) == 40).all()
    assert 0.9 < whole.std() < 1.1  # Poisson of mean 1, nearly
    monkeypatch.setattr(gate, "BLOCK", 400)
    np.testing.assert_array_equal(np.concatenate(list(resamples(40, 7))), whole)
    assert not np.array_equal(np.concatenate(list(resamples(40, 8))), whole)


def test_a_single_dev_query_shows_nothing():
    found = compare(DevChoice(np.array([[0.5]])), "first_stage", np.zeros(1), resamples(1, 1))
    assert (found.judged, found.difference) == (UNCLEAR, 0.5)
    two = compare(DevChoice(np.array([[0.5, 0.3]])), "first_stage", np.zeros(2), resamples(2, 1))
    assert two.judged == UNCLEAR
    assert two.low < -1


@pytest.mark.parametrize(
    ("effect", "most_better", "least_better"), [(-MARGIN, 0.03, 0.0), (0.0, 0.06, 0.0), (0.12, 1.0, 0.9)]
)
def test_how_often_a_true_difference_is_called_better(effect, most_better, least_better):
    # 600 dev sets of 100 queries, spread .25: three standard errors of 2 % are 1.7 %.
    rng = np.random.default_rng(4)
    counts, zero = list(resamples(100, 1)), np.zeros(100)
    draws = [DevChoice(rng.normal(effect, 0.25, size=(1, 100))) for _ in range(600)]
    found = [compare(choice, "first_stage", zero, counts) for choice in draws]
    share = np.mean([one.judged == BETTER for one in found])
    assert least_better <= share <= most_better


# The verdict on constructed scores of dev


@pytest.fixture
def dev(shared_beir, tmp_path):
    """The tiny collection, and dev candidates in which the first stage has the only positive at rank 2 of 3."""
    collection = build_collection(Data(path=shared_beir), tmp_path / "data")
    rows = collection.answerable("dev")
    for query in rows:
        collection.qrels["dev"][query] = {0: 1}
    documents = np.tile(np.array([[1, 0, 2]], dtype=np.int32), (len(rows), 1))
    first = np.tile(np.array([[3.0, 2.0, 1.0]], dtype=np.float32), (len(rows), 1))
    nothing = np.zeros(len(rows), dtype=np.float32)
    queries, ranks = np.array(rows, dtype=np.int32), np.zeros((*documents.shape, 0), dtype=np.int16)
    return collection, Candidates(queries, documents, first, first, nothing, ranks, engines=np.array([]))


UP, DOWN, SAME = [0.0, 9.0, 0.0], [3.0, 1.0, 2.0], [3.0, 2.0, 1.0]  # of the positive, among three documents


def of_all(rows: int, one: list[float], other: list[float] | None = None, share: float = 0.0) -> np.ndarray:
    """Scores (queries, 3) of which a share is the other's."""
    scores = np.tile(np.array(one, dtype=np.float32), (rows, 1))
    scores[: round(rows * share)] = one if other is None else other
    return scores


def both(weights: Weights) -> dict[Kind, Weights]:
    """The same weights for scores and for the order."""
    return {"scores": weights, "order": weights}


@pytest.mark.parametrize(
    ("alone", "fused", "verdict"),
    [
        ((UP,), (UP,), BETTER),
        ((UP,), (DOWN,), BETTER),
        ((DOWN,), (UP,), ONLY_FUSED),
        ((SAME, UP, 0.13), (SAME,), UNCLEAR),  # one query of eight is better
        ((UP, DOWN, 0.5), (DOWN,), UNCLEAR),
        ((SAME,), (DOWN,), WORSE),
    ],
)
def test_the_verdict_on_scores_of_dev(dev, tmp_path, alone, fused, verdict):
    collection, candidates = dev
    rows = len(candidates.queries)
    by_hand = query_scores(collection, "dev", candidates, "RR@10", of_all(rows, *fused))
    weights = both(Weights((0.5,), np.array([list(by_hand.values())])))
    scores = {"tuned": of_all(rows, *alone)}
    release, means = decide_release(collection, candidates, "RR@10", scores, [], weights, 13, tmp_path)

    assert (release.verdict, release.shipped, release.first_stage_weight) == (verdict, "tuned", 0.5)
    assert means["first_stage"] == 0.5
    assert means["tuned"] == pytest.approx(0.5 + release.findings["alone"].difference)
    assert Fusion.load(tmp_path) == Fusion(0.5, 0.5, alone=verdict != ONLY_FUSED)
    kept = json.loads((tmp_path / "dev.json").read_text())
    assert kept["opponents"] == {"first_stage": [0.5] * rows}
    assert np.mean(kept["ways"]["alone"]["values"][0]) == pytest.approx(means["tuned"])
    again, _ = decide_release(collection, candidates, "RR@10", scores, [], weights, 13, tmp_path)
    assert again == release


def test_the_alternatives_are_the_models_that_dev_chose_from(dev, tmp_path: Path):
    collection, candidates = dev
    rows = len(candidates.queries)
    weights = both(Weights((0.0,), np.full((1, rows), 0.5)))
    scores = {name: of_all(rows, UP) for name in ("fitted", "tuned", "distilled")}
    between = [[0.25] * rows, [0.75] * rows]

    def alternatives(*names: str) -> tuple[int, list[float]]:
        decide_release(
            collection, candidates, "RR@10", {name: scores[name] for name in names}, between, weights, 1, tmp_path
        )
        way = json.loads((tmp_path / "dev.json").read_text())["ways"]["alone"]
        return way["chosen"], [row[0] for row in way["values"]]

    assert alternatives("fitted", "tuned") == (1, [1.0, 1.0, 0.25, 0.75])
    assert alternatives("fitted") == (0, [1.0, 0.25, 0.75])
    assert alternatives("fitted", "tuned", "distilled") == (0, [1.0])


def test_ties_of_the_best_mean_go_to_the_first_alternative():
    counts = np.array([[1.0, 1.0], [2.0, 0.0], [0.0, 2.0]])
    assert best_mean(np.array([[0.5, 0.5], [1.0, 0.0], [0.5, 0.5]]), counts).tolist() == [0, 1, 0]


# scripts/gate_table.py


def test_the_table_shifts_the_dev_values_of_a_run_to_each_true_difference(scripts, tmp_path):
    import gate_table

    (tmp_path / "evaluate").mkdir()
    first = [0.2] * 30
    content = {"metric": "nDCG@10", "opponents": {"first_stage": first}, "ways": {}}
    for way in ("alone", "fused"):
        content["ways"][way] = {"chosen": 0, "values": [values(0.7, 0.01, queries=30).tolist()] * 2}
    (tmp_path / "evaluate" / "dev.json").write_text(json.dumps(content))
    population = gate_table.stored(tmp_path)
    assert population.modes["alone"].shape == (2, 30)
    found = gate_table.measure(population, 20, 10, LEVEL, 1)
    assert list(found) == list(gate_table.EFFECTS)
    assert found[0.05] == {BETTER: 1.0, UNCLEAR: 0.0, WORSE: 0.0, "released": 1.0}  # a spread of .01 leaves no doubt
    assert found[-0.03] == {BETTER: 0.0, UNCLEAR: 0.0, WORSE: 1.0, "released": 0.0}


def test_synthetic_values_have_the_spread_and_the_correlation_that_the_docs_name(scripts):
    import gate_table

    modes = gate_table.synthetic(0).modes
    assert {mode: len(one) for mode, one in modes.items()} == {"alone": 5, "fused": 6}
    for one in modes.values():
        np.testing.assert_allclose(one.mean(axis=1), 0, atol=1e-12)
        np.testing.assert_allclose(one.std(axis=1), gate_table.SPREAD, rtol=0.1)
    correlation = np.corrcoef(modes["alone"][0], modes["fused"][0])[0, 1]
    assert correlation == pytest.approx(gate_table.SHARED, abs=0.06)
