"""Lexical signals beside a standard checkpoint's logit: what they are, when they are added, and who applies them."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from trainer.data import build_collection
from trainer.data.groups import Group
from trainer.errors import ModelError
from trainer.evaluation.release import _choices
from trainer.model import Mixture, Reranker, ScoringModel, TokenizedCollection
from trainer.model.interaction import LEXICAL
from trainer.model.mixture import Weights
from trainer.pipeline import run
from trainer.recipe import Data, Passages, Train, load_recipe
from trainer.runtime.run_folder import read_json
from trainer.serving.engine import Engine
from trainer.training import loop, losses
from trainer.training.gradients import GradientStep
from trainer.training.mixture import FEWEST, start_mixture

WEIGHTS = Weights(bm25=0.5, bm25_by_idf=0.25, matched_idf=2.0, log_length=-0.3, constant=-1.5)
PAIRS = [
    ("disk memory disk", "memory runs memory out " * 8),
    ("why does queue lag", "consumer lag grows"),
    ("probe", ""),
    ("update waits behind another transaction that holds the row " * 3, "disk"),
]


@pytest.fixture
def reranker(tiny):
    return Reranker.load(tiny["reranker"], max_length=24)


@pytest.fixture
def mixture(reranker):
    idf = np.round(np.linspace(0.5, 4.0, len(reranker.tokenizer)), 4).astype(np.float32)
    return Mixture(WEIGHTS, idf, average_length=5.0)


@pytest.fixture
def collection(shared_beir, tmp_path):
    return build_collection(Data(path=shared_beir), tmp_path / "data")


def candidate_lists(collection, relevant, rng):
    """Return a list of at most 14 documents for each train query; relevant(query, row) says which are."""
    lists = []
    for query in collection.qrels["train"]:
        rows = rng.permutation(len(collection.documents))[:14].tolist()
        positives = [row for row in rows if relevant(query, row)] or rows[:1]
        lists.append(
            Group(query, positives[:3], [1] * len(positives[:3]), [row for row in rows if row not in positives])
        )
    return lists


def share_of_words(collection):
    texts, queries = collection.passages(range(len(collection.documents))), list(collection.qrels["train"])
    words = dict(zip(queries, (set(text.split()) for text in collection.query_texts(queries)), strict=True))
    return lambda query, row: len(words[query] & set(texts[row].split())) >= 4


@pytest.mark.parametrize("compared", [1, 500, 1 << 24])
def test_the_signals_are_those_of_the_interaction_head(tiny, mixture, compared, monkeypatch):
    """Also of texts that are cut, of a document without words, and of more pairs than are compared at once."""
    monkeypatch.setattr("trainer.model.mixture.COMPARED", compared)
    head = Reranker.load(tiny["bert"], max_length=24)
    head.model.start_head(torch.from_numpy(mixture.idf), average_length=5.0)
    pairs = head.pairs.tokenize_pairs(PAIRS) * 5
    expected = head.signals(pairs)[:, -LEXICAL:]
    np.testing.assert_allclose(mixture.signals(pairs, head.pairs), expected, rtol=1e-5, atol=1e-6)
    assert mixture.signals([], head.pairs).shape == (0, LEXICAL)


def test_the_score_is_the_logit_and_the_weighted_signals(reranker, mixture):
    tokens = reranker.pairs.tokenize_pairs(PAIRS)
    logits = reranker.score(PAIRS)
    reranker.mixture = mixture
    *weights, constant = vars(WEIGHTS).values()
    expected = logits + mixture.signals(tokens, reranker.pairs) @ np.array(weights) + constant
    np.testing.assert_allclose(reranker.score(PAIRS), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(reranker.logits(tokens), logits)
    alone = np.concatenate([reranker.score([pair]) for pair in PAIRS])
    np.testing.assert_allclose(alone, reranker.score(PAIRS), atol=1e-5)
    np.testing.assert_allclose(Engine(reranker, "tiny").score(tokens), reranker.score(PAIRS), atol=1e-6)


def test_of_windows_the_best_sum_counts(reranker, mixture):
    query, document = PAIRS[0]
    reranker.mixture, reranker.passages = mixture, Passages(length=8, overlap=2)
    (pair,) = reranker.pairs.tokenize_pairs([(query, document + " disk disk probe")])
    windows = reranker.cut([pair]).pairs
    assert len(windows) > 2
    sums = reranker.logits(windows) + mixture.of(windows, reranker.pairs)
    assert reranker.score_tokens([pair]) == pytest.approx(sums.max(), abs=1e-5)


def test_a_saved_model_keeps_its_mixture(reranker, mixture, tmp_path):
    reranker.mixture = mixture
    reranker.save(tmp_path / "model")
    again = Reranker.load(tmp_path / "model", max_length=24)
    np.testing.assert_array_equal(again.score(PAIRS), reranker.score(PAIRS))
    reranker.mixture = None
    reranker.save(tmp_path / "model")
    assert not (tmp_path / "model" / "mixture.json").exists()
    assert Reranker.load(tmp_path / "model").mixture is None


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"weights": {"bm25": 1.0}},
        {"weights": vars(WEIGHTS) | {"bm25": "much"}},
        {"weights": [1.0] * 5},
        {"idf": [1.0, None]},
        {"idf": 3.0},
        {"idf": [1.0] * 10},
        {"idf": []},
        {"average_length": float("nan")},
        {"average_length": None},
        {"average_length": 0},
    ],
)
def test_an_invalid_file_is_refused(reranker, mixture, tmp_path, change):
    mixture.save(tmp_path)
    content = json.loads((tmp_path / "mixture.json").read_text())
    assert Mixture.load(tmp_path, reranker.tokenizer) is not None
    (tmp_path / "mixture.json").write_text(json.dumps(content | change))
    with pytest.raises(ModelError, match=r"mixture\.json: not a mixture of version 1"):
        Mixture.load(tmp_path, reranker.tokenizer)


def test_signals_are_added_where_words_decide(reranker, collection):
    lists = candidate_lists(collection, share_of_words(collection), np.random.default_rng(0))
    assert len(lists) >= FEWEST
    fit = start_mixture(reranker, TokenizedCollection(collection, reranker.pairs), lists, 800, lexical=True)
    assert reranker.mixture is not None
    texts = collection.passages(range(len(collection.documents)))
    better = worse = 0
    for group in lists:
        (query,) = collection.query_texts([group.query])
        scores = reranker.score([(query, texts[row]) for row in group.documents])
        positives, negatives = scores[: len(group.positives)], scores[len(group.positives) :]
        better += int((positives[:, None] > negatives[None, :]).sum())
        worse += int((positives[:, None] <= negatives[None, :]).sum())
    assert better > 4 * worse
    assert len(fit.logits) == sum(len(group.documents) for group in lists)


def test_beside_a_logit_that_ranks_the_signals_keep_its_scale(reranker, collection, monkeypatch):
    """The logit says half of what is relevant, words the other half; a logit ten times as large changes nothing."""
    rng = np.random.default_rng(1)
    by_words = share_of_words(collection)
    chosen = {(query, row) for query in collection.qrels["train"] for row in rng.permutation(40)[:10].tolist()}
    lists = candidate_lists(collection, lambda *pair: pair in chosen or by_words(*pair), rng)
    logits = np.array([float((g.query, row) in chosen) for g in lists for row in g.documents], dtype=np.float32)
    logits += rng.normal(0, 0.3, len(logits)).astype(np.float32)
    added = []
    for scale in (1.0, 10.0):
        reranker.mixture = None
        monkeypatch.setattr(reranker, "logits", lambda pairs, note, scale=scale: logits * np.float32(scale))
        start_mixture(reranker, TokenizedCollection(collection, reranker.pairs), lists, 800, lexical=True)
        added.append(reranker.mixture.of(reranker.pairs.tokenize_pairs(PAIRS), reranker.pairs))
    np.testing.assert_allclose(added[1], added[0] * 10, rtol=1e-2)


@pytest.mark.parametrize("spread", [0.01, 1.0, 100.0])
def test_beside_a_logit_without_an_order_the_sum_ranks_better_or_the_logit_stays(
    reranker, collection, monkeypatch, spread
):
    """What is judged is the sum as it will be used, with the logit at its own scale."""
    rng = np.random.default_rng(2)
    lists = candidate_lists(collection, share_of_words(collection), rng)
    tokenized = TokenizedCollection(collection, reranker.pairs)
    pairs = tokenized.pairs([(group.query, row) for group in lists for row in group.documents])
    noise = rng.normal(0, spread, len(pairs)).astype(np.float32)
    monkeypatch.setattr(reranker, "logits", lambda pairs, note=None: noise)
    fit = start_mixture(reranker, tokenized, lists, 800, lexical=True)
    assert (reranker.mixture is None) == (spread == 100.0)

    def reciprocal_ranks(scores):
        ends = np.cumsum([len(group.documents) for group in lists])[:-1]
        parts = zip(np.split(scores, ends), lists, strict=True)
        return np.mean([1 / (1 + (part > part[: len(group.positives)].max()).sum()) for part, group in parts])

    if reranker.mixture is not None:
        gain = reciprocal_ranks(reranker.score_windows(pairs)) - reciprocal_ranks(noise)
        assert gain > 0.1
    else:
        assert fit.first_stage_weight == 0.0


@pytest.mark.parametrize("reason", ["chance", "few lists", "off", "made queries"])
def test_without_a_clear_gain_the_score_stays_the_logit(reranker, collection, reason):
    relevant = share_of_words(collection)
    if reason == "chance":
        chosen = {(query, row) for query in collection.qrels["train"] for row in range(query % 7, 40, 7)}
        relevant = lambda *pair: pair in chosen  # noqa: E731
    lists = candidate_lists(collection, relevant, np.random.default_rng(3))
    if reason == "few lists":
        lists = lists[: FEWEST - 1]
    if reason == "made queries":
        collection = replace(collection, made=frozenset(collection.qrels["train"]))
    tokenized = TokenizedCollection(collection, reranker.pairs)
    fit = start_mixture(reranker, tokenized, lists, 800, lexical=reason != "off")
    assert reranker.mixture is None
    rows = [(group.query, row) for group in lists for row in group.documents]
    np.testing.assert_allclose(fit.logits, reranker.logits(tokenized.pairs(rows)), atol=1e-5)


def test_the_loss_is_that_of_the_whole_score(reranker, mixture, collection):
    """And the gradient reaches the model through it."""
    reranker.mixture = mixture
    lists = candidate_lists(collection, share_of_words(collection), np.random.default_rng(4))[:6]
    tokenized = TokenizedCollection(collection, reranker.pairs)
    accelerator = Accelerator(cpu=True)
    section = Train(precision="fp32", tokens_per_pass=512)
    step = GradientStep(section, lists, reranker, tokenized, accelerator, ScoringModel(reranker))
    loss = step.accumulate(step.prepare(range(len(lists))))[0].item()
    expected = []
    for group in lists:
        scores = reranker.score_tokens(tokenized.pairs([(group.query, row) for row in group.documents]))
        grades = torch.zeros(1, len(scores))
        grades[0, : len(group.grades)] = 1.0
        whole = torch.ones(1, len(scores), dtype=torch.bool)
        expected.append(losses.listwise(torch.from_numpy(scores)[None], grades, whole, None).item())
    assert loss == pytest.approx(np.mean(expected), rel=1e-4)
    assert reranker.model.classifier.weight.grad.abs().sum() > 0


def test_a_run_with_lexical_signals_beside_a_standard_checkpoint(recipe_file, tiny, tmp_path, scripts, capsys):
    """The base, the fitted and the exported model are rows of their own, and so is what other libraries compute."""
    from check_rows import check_rows

    words = [f"reranker.model={tiny['reranker']}", "export.formats=[onnx]"]
    run(load_recipe(recipe_file, words), tmp_path / "runs", force=True)
    folder = tmp_path / "runs" / "tiny"
    assert "lexical signals are added to the logit" in " ".join(capsys.readouterr().out.split())
    systems = read_json(folder / "evaluate" / "results.json")["systems"]
    assert {"base", "fitted", "other_libraries", "fused"} <= systems.keys()
    assert systems["fitted"]["nDCG@10"]["mean"] > systems["base"]["nDCG@10"]["mean"]
    model = Reranker.load(folder)
    assert model.mixture is not None
    by_onnx = Reranker.load(folder / "export" / "model", engine="onnx")
    np.testing.assert_allclose(by_onnx.score(PAIRS), model.score(PAIRS), atol=1e-4)
    card = (folder / "export" / "model" / "README.md").read_text()
    assert "`mixture.json`" in card
    assert "| other libraries |" in card
    for row in check_rows(folder):
        assert row.difference < 1e-3
        assert row.metrics.keys() == {"nDCG@10 other_libraries", "RR@10 other_libraries"}
        assert row.ties or all(read == pytest.approx(table, abs=1e-6) for read, table in row.metrics.values())


def test_dev_chose_between_what_was_fitted_and_trained_not_the_base_as_it_was():
    scores = dict.fromkeys(("base", "fitted", "tuned"), np.zeros((1, 1)))
    assert _choices(scores) == ["fitted", "tuned"]
    del scores["fitted"]
    assert _choices(scores) == ["base", "tuned"]


def test_without_lexical_signals_a_standard_checkpoint_is_read_alike_everywhere(recipe_file, tiny, tmp_path):
    words = [f"reranker.model={tiny['reranker']}", "reranker.lexical_signals=false", "train.epochs=1"]
    run(load_recipe(recipe_file, words), tmp_path / "runs", force=True)
    folder = tmp_path / "runs" / "tiny"
    assert not (folder / "export" / "model" / "mixture.json").exists()
    assert "other_libraries" not in read_json(folder / "evaluate" / "results.json")["systems"]
    assert (folder / "train" / "fitted.json").exists()


class Killed(BaseException):
    """Stands for the end of the process: nothing catches it."""


def test_a_killed_training_goes_on_through_the_same_signals(recipe_file, tiny, tmp_path, monkeypatch, capsys):
    recipe = load_recipe(recipe_file, [f"reranker.model={tiny['reranker']}"])
    run(recipe, tmp_path / "whole", until="train")
    save = loop.save_checkpoint

    def die_at_step_9(progress, *arguments):
        if progress.step == 9:
            raise Killed
        save(progress, *arguments)

    monkeypatch.setattr(loop, "save_checkpoint", die_at_step_9)
    with pytest.raises(Killed):
        run(recipe, tmp_path / "killed", until="train")
    monkeypatch.undo()
    run(recipe, tmp_path / "killed", until="train")
    assert "resumed at step 6" in capsys.readouterr().out
    folders = [tmp_path / runs / "tiny" / "train" / "best" for runs in ("whole", "killed")]
    for name in ("mixture.json", "model.safetensors"):
        one, other = ((folder / name).read_bytes() for folder in folders)
        assert one == other


def test_the_next_run_continues_with_the_signals_of_its_base(recipe_file, tiny, tmp_path):
    """They are not fitted again, so that the row of the base is the model as it was used; a key leaves them out."""
    run(
        load_recipe(recipe_file, [f"reranker.model={tiny['reranker']}", "train.epochs=1"]),
        tmp_path / "runs",
        force=True,
    )
    base = tmp_path / "runs" / "tiny" / "export" / "model"
    before = read_json(tmp_path / "runs" / "tiny" / "evaluate" / "results.json")
    for name, key in (("kept", "true"), ("left-out", "false")):
        words = [f"name={name}", f"reranker.model={base}", f"reranker.lexical_signals={key}", "train.epochs=1"]
        run(load_recipe(recipe_file, words), tmp_path / "runs", force=True)
        systems = read_json(tmp_path / "runs" / name / "evaluate" / "results.json")["systems"]
        assert systems["base"]["nDCG@10"] == before["systems"][before["shipped"]]["nDCG@10"]
        assert ("fitted" in systems) == (name == "left-out")
    kept, left_out = (tmp_path / "runs" / name / "export" / "model" / "mixture.json" for name in ("kept", "left-out"))
    assert kept.read_bytes() == (base / "mixture.json").read_bytes()
    assert not left_out.exists()


@pytest.mark.slow
def test_two_processes_train_through_the_signals_like_one(command, recipe_file, tiny, tmp_path):
    words = [f"reranker.model={tiny['reranker']}", "--force"]
    for processes in (1, 2):
        ended = command(recipe_file, *words, "--runs", tmp_path / str(processes), processes=processes)
        assert ended.returncode == 0, ended.stdout + ended.stderr
    one, two = (tmp_path / processes / "tiny" / "train" for processes in "12")
    assert (one / "start" / "mixture.json").read_bytes() == (two / "start" / "mixture.json").read_bytes()
    losses = [
        [row["loss"] for row in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()) if "loss" in row]
        for folder in (one, two)
    ]
    assert len(losses[0]) == 12
    np.testing.assert_allclose(losses[1], losses[0], atol=1e-4)
