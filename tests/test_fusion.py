"""Fusion with first-stage scores: by hand, applied by a model, kept in its folder, and its weight chosen."""

import json
import math
import warnings
from dataclasses import replace

import numpy as np
import pytest

from trainer.data import build_collection
from trainer.data.groups import Group
from trainer.errors import ModelError
from trainer.evaluation.fusion import (
    GRID,
    MOST,
    UNFITTED,
    Weights,
    choose_weight,
    fit,
    fitted_lists,
    fuse_with_first_stage,
    lists_to_fit,
    start_on_dev,
    try_weights,
)
from trainer.model import Fusion, Reranker
from trainer.model.fusion import numbers_of_order
from trainer.model.scores import standardised
from trainer.recipe import Data
from trainer.retriever import NOTHING, Candidates
from trainer.runtime.run_folder import read_json
from trainer.training import FITTED
from trainer.training.head_init import Fit

QUERY = "why does memory of the node run out"
DOCUMENTS = [
    "kernel kills the process when memory of the node runs out",
    "certificate expired because renewal ran without reload",
    "inodes run out although the disk shows free space",
]
UNIT = 1.5**0.5  # 1 / standard deviation of -1, 0, 1


@pytest.fixture(scope="module")
def model(tiny):
    return Reranker.load(tiny["reranker"], max_length=32, device="cpu")


@pytest.fixture
def fused(model):
    """The model with weights for a fusion."""
    model.fusion = Fusion(scores=0.5, order=2.0)
    yield model
    model.fusion, model._warned = None, False


def found(documents, scores=None, queries=None):
    """Candidates as a first stage leaves them; without scores, those fall by 1 from rank to rank."""
    documents = np.array(documents, dtype=np.int32)
    falling = np.tile(np.arange(documents.shape[1], 0, -1, dtype=np.float32), (len(documents), 1))
    scores = falling if scores is None else np.array(scores, dtype=np.float32)
    queries = np.arange(len(documents)) if queries is None else np.array(queries)
    nothing = np.zeros(len(documents), dtype=np.float32)
    ranks = np.zeros((*documents.shape, 0), dtype=np.int16)
    return Candidates(queries.astype(np.int32), documents, scores, scores, nothing, ranks, engines=np.array([]))


# The numbers


def test_fusion_standardises_both_scores_over_the_retrieved_documents():
    candidates = found([[3, 1, 0, NOTHING]])  # the first stage's scores are 4 3 2
    scores = np.array([[10.0, 30.0, 20.0, -np.inf]])
    expected = [-UNIT + 0.5 * UNIT, UNIT, 0.0 - 0.5 * UNIT]
    by_hand = fuse_with_first_stage(candidates, scores, 0.5)
    np.testing.assert_allclose(by_hand[0, :3], expected, atol=1e-12)
    assert np.isneginf(by_hand[0, 3])


def test_by_order_the_scores_fall_as_the_discount_of_ndcg_does():
    np.testing.assert_allclose(numbers_of_order(4), [-1.0, -math.log2(3), -2.0, -math.log2(5)])
    candidates = found([[3, 1, 0]], [[900.0, 2.0, 1.0]])
    scores = np.array([[10.0, 30.0, 20.0]])
    by_hand = np.array([-UNIT, UNIT, 0.0])
    order = np.array([-1.0, -math.log2(3), -2.0])
    by_hand += 0.7 * (order - order.mean()) / order.std()
    np.testing.assert_allclose(fuse_with_first_stage(candidates, scores, 0.7, "order")[0], by_hand, atol=1e-12)


@pytest.mark.parametrize("equal", [0.0, 7.0, -0.1, 1e300, 1e-310])
def test_equal_scores_and_a_single_document_are_standardised_to_zero(equal):
    some = np.ones((1, 3), dtype=bool)
    assert standardised(np.full((1, 3), equal), some).tolist() == [[0.0, 0.0, 0.0]]
    assert standardised(np.array([[equal, 5.0]]), np.array([[True, False]])).tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("scale", [1.0, 1e-200, 1e308, -3.0])
def test_the_scale_of_scores_does_not_matter(scale):
    numbers = np.array([[1.0, 0.5, -1.0]])
    some = np.ones((1, 3), dtype=bool)
    expected = np.sign(scale) * standardised(numbers, some)
    np.testing.assert_allclose(standardised(numbers * scale, some), expected, atol=1e-12)


# The model applies it


def test_a_model_ranks_by_the_fused_scores(fused):
    alone = fused.score([(QUERY, text) for text in DOCUMENTS]).astype(float)
    first = [1.0, 3.0, 2.0]
    expected = (alone - alone.mean()) / alone.std() + 0.5 * np.array([-UNIT, UNIT, 0.0])
    ranked = fused.rank(QUERY, DOCUMENTS, first_stage_scores=first)
    assert [one.index for one in ranked] == np.argsort(-expected).tolist()
    np.testing.assert_allclose([one.score for one in ranked], np.sort(expected)[::-1], atol=1e-6)
    assert [one.document for one in ranked] == [DOCUMENTS[one.index] for one in ranked]
    np.testing.assert_array_equal(fused.score([(QUERY, text) for text in DOCUMENTS]), alone)  # always the model alone


def test_without_scores_a_model_ranks_by_its_own(fused):
    alone = fused.score([(QUERY, text) for text in DOCUMENTS])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ranked = fused.rank(QUERY, DOCUMENTS)
    assert [one.score for one in ranked] == np.sort(alone)[::-1].tolist()


def test_by_order_the_weight_for_order_is_used(fused):
    alone = fused.score([(QUERY, text) for text in DOCUMENTS]).astype(float)
    order = -np.log2([2.0, 3.0, 4.0])
    expected = (alone - alone.mean()) / alone.std() + 2.0 * (order - order.mean()) / order.std()
    ranked = fused.rank(QUERY, DOCUMENTS, first_stage="order", top_k=2)
    np.testing.assert_allclose([one.score for one in ranked], np.sort(expected)[::-1][:2], atol=1e-6)


@pytest.mark.parametrize("first", [[5, 1, 3], np.array([5.0, 1.0, 3.0], dtype=np.float32), (5.0, 1.0, 3.0)])
def test_first_stage_scores_may_be_any_numbers(fused, first):
    ranked = fused.rank(QUERY, DOCUMENTS, first_stage_scores=first)
    assert ranked == fused.rank(QUERY, DOCUMENTS, first_stage_scores=[5.0, 1.0, 3.0])


@pytest.mark.parametrize("first", [[7.0, 7.0, 7.0], [-1e9, -1e9, -1e9]])
def test_equal_first_stage_scores_leave_the_models_order(fused, first):
    ranked = fused.rank(QUERY, DOCUMENTS, first_stage_scores=first)
    assert [one.index for one in ranked] == [one.index for one in fused.rank(QUERY, DOCUMENTS)]


def test_one_document_or_none_is_ranked_too(fused):
    (only,) = fused.rank(QUERY, DOCUMENTS[:1], first_stage_scores=[3.0])
    assert (only.index, only.score) == (0, 0.0)
    assert fused.rank(QUERY, [], first_stage_scores=[]) == []


@pytest.mark.parametrize(
    ("documents", "options", "message"),
    [
        (DOCUMENTS, {"first_stage_scores": [10**400, 1, 2]}, "must be numbers"),
        (DOCUMENTS, {"first_stage_scores": [1.0]}, "for each of the 3 documents, not 1"),
        (DOCUMENTS, {"first_stage_scores": []}, "for each of the 3 documents, not 0"),
        (DOCUMENTS, {"first_stage_scores": [[1.0, 2.0, 3.0]]}, r"not an array of shape \(1, 3\)"),
        (DOCUMENTS, {"first_stage_scores": 1.0}, r"not an array of shape \(\)"),
        (DOCUMENTS, {"first_stage_scores": [1.0, math.nan, 2.0]}, "must be finite; 1 of them"),
        (DOCUMENTS, {"first_stage_scores": [1.0, math.inf, -math.inf]}, "must be finite; 2 of them"),
        (DOCUMENTS, {"first_stage_scores": [1.0, None, 2.0]}, "must be finite; 1 of them"),
        (DOCUMENTS, {"first_stage_scores": ["a", "b", "c"]}, "must be numbers"),
        (DOCUMENTS, {"first_stage_scores": [[1.0], [2.0, 3.0], [1.0]]}, "must be numbers"),
        (DOCUMENTS, {"first_stage_scores": [1.0, 2.0, 3.0], "first_stage": "order"}, "not both"),
        (DOCUMENTS, {"first_stage": "scores"}, 'must be "order" or None'),
    ],
)
def test_invalid_first_stage_options_are_refused_in_one_sentence(fused, documents, options, message):
    with pytest.raises(ValueError, match=message) as error:
        fused.rank(QUERY, documents, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("options", [{"first_stage_scores": [1.0, 2.0, 3.0]}, {"first_stage": "order"}])
def test_a_model_without_weights_cannot_fuse(model, options):
    with pytest.raises(ModelError, match=r"no fusion\.json"):
        model.rank(QUERY, DOCUMENTS, **options)


def test_options_are_keyword_only(fused):
    with pytest.raises(TypeError):
        fused.rank(QUERY, DOCUMENTS, [1.0, 2.0, 3.0])


def test_a_model_that_is_better_only_fused_warns_once_when_used_alone(model):
    model.fusion = Fusion(1.0, 1.0, alone=False)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model.score([(QUERY, text) for text in DOCUMENTS])
            model.rank(QUERY, DOCUMENTS, first_stage_scores=[1.0, 2.0, 3.0])
            assert caught == []
            model.rank(QUERY, DOCUMENTS)
            model.rank(QUERY, DOCUMENTS)
        (one,) = caught
        assert "only with the first stage's scores" in str(one.message)
        assert one.filename == __file__
    finally:
        model.fusion, model._warned = None, False


# The file


def test_a_saved_model_keeps_its_fusion(model, tmp_path):
    model.save(tmp_path / "without")
    assert Reranker.load(tmp_path / "without").fusion is None
    model.fusion = Fusion(0.25, 0.0, alone=False)
    try:
        model.save(tmp_path / "with")
    finally:
        model.fusion = None
    again = Reranker.load(tmp_path / "with")
    assert again.fusion == Fusion(0.25, 0.0, alone=False)
    content = json.loads((tmp_path / "with" / "fusion.json").read_text())
    assert content == {"version": 1, "scores": 0.25, "order": 0.0, "alone": False}


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"version": 2, "scores": 1.0, "order": 1.0, "alone": true}',
        '{"version": 1, "scores": -1.0, "order": 1.0, "alone": true}',
        '{"version": 1, "scores": NaN, "order": 1.0, "alone": true}',
        '{"version": 1, "scores": "1", "order": 1.0, "alone": true}',
        '{"version": 1, "scores": true, "order": 1.0, "alone": true}',
        '{"version": 1, "scores": 1.0, "alone": true}',
        '{"version": 1, "scores": 1.0, "order": 1.0, "alone": 1}',
    ],
)
def test_a_damaged_file_is_refused(tmp_path, content):
    (tmp_path / "fusion.json").write_text(content)
    with pytest.raises(ModelError, match=r"fusion\.json: not a fusion of version 1"):
        Fusion.load(tmp_path)


# The weight


@pytest.fixture
def collection(shared_beir, tmp_path):
    return build_collection(Data(path=shared_beir), tmp_path / "data")


def lists(collection, size=6, seed=2):
    """Train candidates with one positive each at a random place, and the grades of a perfect order."""
    rng = np.random.default_rng(seed)
    queries = collection.answerable("train")
    rows = []
    for query in queries:
        positive = collection.positives("train", query)[0]
        others = [row for row in range(len(collection.documents)) if row not in collection.qrels["train"][query]]
        rows.append(rng.permutation([positive, *rng.choice(others, size - 1, replace=False)]))
    documents = np.array(rows)
    relevant = np.array(
        [
            [row in collection.positives("train", query) for row in rows]
            for query, rows in zip(queries, documents, strict=True)
        ]
    )
    return queries, documents, relevant.astype(float), rng


def test_the_fitted_weight_is_the_ratio_of_two_coefficients(collection):
    """Two noisy views of the relevance, of which the first stage's has half the noise, four times the say."""
    queries, documents, relevant, rng = lists(collection)
    model, first = (relevant + rng.normal(0, noise, size=relevant.shape) for noise in (0.8, 0.4))
    candidates = found(documents, first, queries)
    weight = fit(collection, candidates, model, "scores")
    assert 1.5 < weight < MOST
    twice = found(documents, model, queries)
    assert fit(collection, twice, first, "scores") == pytest.approx(1 / weight, rel=0.1)


def test_the_fitted_weight_is_between_0_and_the_largest_weight(collection):
    queries, documents, relevant, _ = lists(collection)
    assert fit(collection, found(documents, -relevant, queries), relevant, "scores") == 0.0
    assert fit(collection, found(documents, relevant, queries), -relevant, "scores") == MOST
    assert fit(collection, found(documents, relevant, queries).select([]), relevant[:0], "scores") == 0.0


def test_by_order_the_weight_is_fitted_to_the_order(collection):
    queries, documents, relevant, rng = lists(collection)
    best_first = np.argsort(-(relevant + rng.normal(0, 0.3, size=relevant.shape)), axis=1)
    documents = np.take_along_axis(documents, best_first, axis=1)
    noise = rng.normal(size=relevant.shape)
    candidates = found(documents, rng.normal(size=relevant.shape), queries)
    assert fit(collection, candidates, noise, "order") > 2
    backwards = found(documents[:, ::-1], rng.normal(size=relevant.shape), queries)
    assert fit(collection, backwards, noise, "order") == 0.0


def test_at_most_200_lists_with_a_positive_and_another_candidate_are_fitted(collection, monkeypatch):
    queries, documents, _, _ = lists(collection)
    documents[0] = NOTHING
    documents[1, 1:] = NOTHING
    documents[1, 0] = collection.positives("train", queries[1])[0]
    candidates = found(documents, queries=queries)
    assert lists_to_fit(collection, candidates).queries.tolist() == queries[2:]
    monkeypatch.setattr("trainer.evaluation.fusion.LISTS", 5)
    few = lists_to_fit(collection, candidates).queries.tolist()
    assert (len(few), few[0], few[-1]) == (5, queries[2], queries[-1])


def test_dev_that_people_asked_fits_the_weight_where_train_queries_are_made(collection, monkeypatch):
    monkeypatch.setattr("trainer.evaluation.fusion.FEWEST", 2)
    queries, documents, relevant, rng = lists(collection)
    as_dev = replace(collection, qrels=collection.qrels | {"dev": collection.qrels["train"]})
    model, first = (relevant + rng.normal(0, noise, size=relevant.shape) for noise in (0.8, 0.4))
    candidates = found(documents, first, queries)
    expected = fit(collection, candidates, model, "scores")
    assert start_on_dev(as_dev, candidates, model, "scores") == expected != UNFITTED
    without = documents.copy()
    without[0] = NOTHING  # a query without candidates fits nothing, and the others as before
    rest = fit(collection, candidates.select(range(1, len(queries))), model[1:], "scores")
    assert start_on_dev(as_dev, found(without, first, queries), model, "scores") == rest
    made = replace(as_dev, made=frozenset(queries))
    assert start_on_dev(made, candidates, model, "scores") == UNFITTED
    monkeypatch.setattr("trainer.evaluation.fusion.FEWEST", len(queries) + 1)
    assert start_on_dev(as_dev, candidates, model, "scores") == UNFITTED


def test_dev_changes_the_weight_only_where_the_gain_is_above_its_standard_error():
    fitted = np.full(9, 0.5)
    gain = np.array([0.9, 0.3, *[0.5] * 7])  # of one query, and a loss of another: mean .022, standard error .052
    clear = np.array([0.9, 0.9, *[0.5] * 7])  # of two: mean .0889, standard error .0588
    ones = np.ones((1, 9))
    assert choose_weight(np.stack([fitted, gain]), ones).tolist() == [0]
    assert choose_weight(np.stack([fitted, gain, clear]), ones).tolist() == [2]
    assert choose_weight(np.stack([fitted, clear, clear]), ones).tolist() == [1]  # the nearer of equal ones
    assert choose_weight(np.stack([fitted, fitted - 0.2]), ones).tolist() == [0]
    counts = np.array([[0.0, 0.0, *[9 / 7] * 7], [5.0, 4.0, *[0.0] * 7]])
    assert choose_weight(np.stack([fitted, clear]), counts).tolist() == [0, 1]


def test_weights_around_the_fitted_one_are_tried_and_0_is_one_of_them(collection):
    rows = collection.answerable("dev")
    rng = np.random.default_rng(5)
    candidates = found([rng.permutation(40)[:10] for _ in rows], queries=rows)
    scores = rng.normal(size=candidates.documents.shape).astype(np.float32)
    weights = try_weights(collection, candidates, "nDCG@10", scores, 0.8, "scores")
    assert weights.tried == (0.8, 0.4, 1.6, 0.2, 3.2, 0.0)
    assert weights.values.shape == (len(GRID), len(rows))
    assert weights.chosen in weights.tried
    assert try_weights(collection, candidates, "nDCG@10", scores, 0.0, "order").tried == (0.0,)
    assert Weights((0.3, 0.0), np.array([[0.5, 0.5], [0.4, 0.4]])).chosen == 0.3


def test_the_logits_of_a_fitted_head_are_read_in_the_order_of_the_candidates(tmp_path):
    lists = [Group(4, [7], [1], [9, 8], first=[0.0, 1.0, -1.0]), Group(6, [1], [2], [3], first=[1.0, -1.0])]
    Fit(lists, np.array([0.5, -1.0, 2.0, 3.0, 4.0], dtype=np.float32), 0.25).save(tmp_path)
    candidates = found([[5, 6, 7], [9, 7, 8], [3, 1, NOTHING]], queries=[2, 4, 6])
    record = read_json(tmp_path / FITTED)
    fitted, scores = fitted_lists(candidates, record["logits"])
    assert record["first_stage_weight"] == 0.25
    assert fitted.queries.tolist() == [4, 6]
    assert scores.tolist() == [[-1.0, 0.5, 2.0], [4.0, 3.0, -np.inf]]
