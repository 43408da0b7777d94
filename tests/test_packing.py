"""Pairs without padding give the logits and gradients of padded ones, for every architecture that can."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
)

from trainer.errors import ModelError
from trainer.model import Batches, Reranker, ScoringModel, attention, packing
from trainer.runtime.precision import autocast

SIZE: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_labels": 1,
}
STILL: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "max_position_embeddings": 70}
MODELS = {
    "bert": lambda: BertForSequenceClassification(BertConfig(**SIZE, **STILL, intermediate_size=48)),
    "roberta": lambda: RobertaForSequenceClassification(RobertaConfig(**SIZE, **STILL, intermediate_size=48)),
    "xlm-roberta": lambda: XLMRobertaForSequenceClassification(XLMRobertaConfig(**SIZE, **STILL, intermediate_size=48)),
    "modernbert": lambda: ModernBertForSequenceClassification(
        ModernBertConfig(**SIZE, intermediate_size=48, local_attention=8, pad_token_id=0, classifier_pooling="cls")
    ),
}
LENGTHS = [23, 5, 40, 1, 17]


@pytest.fixture(scope="module", params=MODELS)
def plain(request):
    """A model as transformers makes it, in float64, where a difference is a fault and not a rounding."""
    torch.manual_seed(1)
    model = MODELS[request.param]().double().eval()
    for weight in model.parameters():  # fresh weights are so small that attention hardly matters
        torch.nn.init.normal_(weight, std=0.3)
    return model


@pytest.fixture
def batch():
    ids = torch.randint(4, 50, (len(LENGTHS), max(LENGTHS)), generator=torch.Generator().manual_seed(2))
    mask = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).long()
    return {"input_ids": torch.where(mask.bool(), ids, 1), "attention_mask": mask}


def gradients(model, batch, packed):
    model.zero_grad()
    scores = packing.logits(model, batch, packed)
    (scores * torch.arange(1.0, len(scores) + 1)).sum().backward()
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


def test_both_layouts_score_as_transformers_does(plain, batch):
    expected = plain(**batch).logits.float().squeeze(1)
    ours = copy.deepcopy(plain)
    for _ in range(2):  # a second time does nothing
        packing.prepare(ours)
    assert packing.can_pack(ours)
    assert expected.std() > 1e-3
    for packed in (False, True):
        torch.testing.assert_close(packing.logits(ours, batch, packed), expected, atol=1e-6, rtol=1e-6)


def test_both_layouts_have_the_gradients_of_transformers(plain, batch):
    expected = gradients(copy.deepcopy(plain), batch, packed=False)
    ours = copy.deepcopy(plain)
    packing.prepare(ours)
    for packed in (False, True):
        found = gradients(ours, batch, packed)
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-6, msg=name)


def test_the_saved_checkpoint_is_an_ordinary_one(plain, batch, tmp_path):
    ours = copy.deepcopy(plain)
    packing.prepare(ours)
    assert ours.state_dict().keys() == plain.state_dict().keys()
    ours.save_pretrained(tmp_path)
    assert "packed" not in (tmp_path / "config.json").read_text()
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float64)
    torch.testing.assert_close(again(**batch).logits, plain(**batch).logits)


def test_heads_of_any_width_are_packed(batch):
    """Kernels want widths that are multiples of eight; these heads have 26, as those of TinyBERT do."""
    config = BertConfig(**SIZE | {"hidden_size": 52}, **STILL, intermediate_size=48)
    model = BertForSequenceClassification(config).double().eval()
    packing.prepare(model)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    torch.testing.assert_close(packing.logits(model, batch, True), packing.logits(model, batch, False))


@pytest.mark.parametrize("kind", ["bert", "roberta", "modernbert"])
def test_the_interaction_head_reads_packed_pairs_alike(kind, tiny, words):
    reranker = Reranker.load(tiny[kind], max_length=48, precision="bf16")
    rng = np.random.default_rng(5)
    texts = [" ".join(rng.choice(words, size=size)) for size in (3, 30, 1, 12, 4, 4)]
    tokens = reranker.pairs.tokenize(texts)
    batch = reranker.pairs.pad(list(zip(tokens[::2], tokens[1::2], strict=True)))
    model = reranker.model.double()
    for weight in model.encoder.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    torch.nn.init.normal_(model.classifier.weight)
    padded, packed = (gradients(model, batch, layout) for layout in (False, True))
    torch.testing.assert_close(packing.signals(model, batch, True), packing.signals(model, batch, False))
    assert padded.keys() == packed.keys()
    for name, gradient in padded.items():
        torch.testing.assert_close(packed[name], gradient, atol=1e-5, rtol=1e-5, msg=name)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
@pytest.mark.parametrize("head", ["classifier", "interaction"])
def test_joined_batches_have_the_scores_and_gradients_of_separate_ones(kind, head, tiny, words, monkeypatch):
    monkeypatch.setattr(packing, "_in_bf16_on_cpu", lambda model: True)  # in float64, to compare exactly
    monkeypatch.setattr(packing, "JOINED_TOKENS", 150)  # several sequences
    torch.manual_seed(3)
    reranker = Reranker.load(tiny[kind], max_length=48, head=head)
    model = reranker.model.double().eval()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    rng = np.random.default_rng(6)
    texts = [" ".join(rng.choice(words, size=size)) for size in (3, 30, 1, 12, 4, 4, 2, 25, 3, 11)]
    tokens = reranker.pairs.tokenize(texts)
    pairs = list(zip(tokens[::2], tokens[1::2], strict=True))
    batches = [reranker.pairs.pad(pairs[start : start + 2], multiple=8) for start in range(0, len(pairs), 2)]

    def scores_and_gradients(compute):
        model.zero_grad()
        scores = compute(model, batches, packed=False)
        (scores * torch.arange(1.0, len(scores) + 1)).sum().backward()
        return scores, {name: one.grad for name, one in model.named_parameters() if one.grad is not None}

    def separate(model, batches, packed):
        return torch.cat([packing.logits(model, batch, packed) for batch in batches])

    joined, gradients = scores_and_gradients(packing.training_logits)
    expected, expected_gradients = scores_and_gradients(separate)
    assert expected.std() > 1e-3
    torch.testing.assert_close(joined, expected, atol=1e-5, rtol=1e-5)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in expected_gradients.items():
        torch.testing.assert_close(gradients[name], gradient, atol=1e-5, rtol=1e-5, msg=name)


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning")  # torch's own, on import
def test_batches_are_joined_only_in_bf16_on_a_cpu_and_where_every_token_of_a_pair_is_attended(tiny, monkeypatch):
    joined = []
    original = packing._joined_logits
    monkeypatch.setattr(packing, "_joined_logits", lambda *inputs: joined.append(1) or original(*inputs))
    for kind, precision, expected in (("bert", "bf16", 1), ("bert", "fp32", 0), ("modernbert", "bf16", 0)):
        joined.clear()
        reranker = Reranker.load(tiny[kind], max_length=48, precision=precision)
        pairs = reranker.pairs.tokenize_pairs([("word", "another word"), ("word", "third")])
        ScoringModel(reranker)(Batches(reranker.batches(pairs, training=True)[1]))
        assert len(joined) == expected, (kind, precision)
    reranker = Reranker.load(tiny["bert"], max_length=48, precision="bf16")
    reranker.model.compile()  # does nothing before the first call
    assert not packing.can_join(reranker.model)


def test_scoring_and_training_use_the_rerankers_layout(tiny, monkeypatch):
    reranker = Reranker.load(tiny["reranker"], max_length=48)
    assert not reranker.packed, "on a CPU pairs are padded"
    documents = ["consumer lag grows", "disk", "inodes run out although the disk shows free space"]
    padded = reranker.score([("queue lag", text) for text in documents])
    seen = []
    attend = attention._attend_pair_by_pair
    monkeypatch.setattr(attention, "_attend_pair_by_pair", lambda *inputs: seen.append(1) or attend(*inputs))
    reranker.packed = True
    np.testing.assert_allclose(reranker.score([("queue lag", text) for text in documents]), padded, atol=1e-5)
    assert len(seen) == reranker.model.config.num_hidden_layers
    asked, *read = reranker.pairs.tokenize(["queue lag", *documents])
    batches = [reranker.pairs.pad([(asked, one)]) for one in read]
    np.testing.assert_allclose(ScoringModel(reranker)(Batches(batches)).detach().numpy(), padded, atol=1e-5)
    assert len(seen) == 4 * reranker.model.config.num_hidden_layers


def test_out_of_memory_batches_shrink_and_scores_are_the_same(tiny, capsys):
    reranker = Reranker.load(tiny["reranker"], max_length=48)
    documents = ["queue lag " * size for size in range(1, 12)]
    expected = reranker.score([("disk", text) for text in documents])
    embed = reranker.model.bert.embeddings.forward

    def small_memory(input_ids, **named):
        if input_ids.numel() > 128:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return embed(input_ids, **named)

    reranker.model.bert.embeddings.forward = small_memory
    np.testing.assert_allclose(reranker.score([("disk", text) for text in documents]), expected, atol=1e-6)
    assert 64 < reranker.tokens_per_bucket <= 128
    said = f"out of memory: continuing with {reranker.tokens_per_bucket} tokens in a batch"
    assert said in " ".join(capsys.readouterr().out.split())
    reranker.pairs.max_length, small = 48, "queue lag " * 100
    reranker.model.bert.embeddings.forward = lambda **_: small_memory(torch.empty(999))
    with pytest.raises(ModelError, match="reranker.max_length: out of memory with a single pair of 48 tokens"):
        reranker.score([("disk", small)])


def test_memory_too_small_for_any_batch_is_an_error_after_one_attempt_per_halving(tiny):
    reranker = Reranker.load(tiny["reranker"], max_length=48)
    attempts = []

    def no_memory(input_ids, **_):
        attempts.append(input_ids.shape)
        raise torch.OutOfMemoryError("CUDA out of memory")

    reranker.model.bert.embeddings.forward = no_memory
    with pytest.raises(ModelError, match="out of memory with a single pair"):
        reranker.score([("disk", text) for text in ["queue lag " * size for size in range(1, 200)]])
    sizes = [rows * tokens for rows, tokens in attempts]
    assert attempts[-1][0] == 1
    assert all(2 * after <= before for before, after in zip(sizes, sizes[1:], strict=False))


def pairs_of_many_lengths(kind, tiny, words):
    """A model whose scores differ by much more than half precision rounds, and a batch for it."""
    reranker = Reranker.load(tiny[kind], max_length=48, precision="bf16")
    rng = np.random.default_rng(5)
    tokens = reranker.pairs.tokenize([" ".join(rng.choice(words, size=size)) for size in rng.integers(1, 40, size=100)])
    batch = reranker.pairs.pad(list(zip(tokens[::2], tokens[1::2], strict=True)))
    generator = torch.Generator(reranker.model.device).manual_seed(5)
    for name, weight in reranker.model.named_parameters():
        if weight.ndim > 1 and name != "mixture":
            torch.nn.init.normal_(weight, std=0.2, generator=generator)
    return reranker, batch


def assert_layouts_agree_in_half_precision(reranker, batch):
    """Within what rounding to bf16 explains: on a CPU .06 of the scores' spread and .02 of the gradients' norm.

    With attention 1.3 times as sharp in one layout these are .58 and .046 at least.
    """
    model = reranker.model
    with autocast(model.device, "bf16"):
        padded, packed = (packing.logits(model, batch, layout).detach().cpu() for layout in (False, True))
        by_layout = [gradients(model, batch, layout) for layout in (False, True)]
    assert packed.isfinite().all()
    assert (packed - padded).abs().max() < 0.15 * padded.std()
    expected, found = (torch.cat([gradient.flatten() for gradient in layout.values()]) for layout in by_layout)
    assert (found - expected).norm() < 0.04 * expected.norm()


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["bert", "roberta", "modernbert", "reranker"])
def test_on_a_gpu_packed_pairs_have_the_scores_and_gradients_of_padded_ones(kind, tiny, words):
    reranker, batch = pairs_of_many_lengths(kind, tiny, words)
    assert reranker.packed
    assert_layouts_agree_in_half_precision(reranker, batch)


@pytest.mark.parametrize("kind", ["boolean", "bias", None])
@pytest.mark.parametrize("kept", [512, 8])
def test_bf16_attention_with_gradients_on_a_cpu_equals_torchs(kind, kept, monkeypatch):
    """In products, and in float32 for pairs over the longest that are kept: output and gradients."""
    monkeypatch.setattr(attention, "MAX_SAVED_LENGTH", kept)
    torch.manual_seed(3)
    masks = {"boolean": torch.rand(2, 1, 9, 9) < 0.7, "bias": torch.randn(2, 1, 9, 9), None: None}
    mask, slope = masks[kind], torch.randn(2, 9, 4, 8)
    if kind == "boolean":
        mask[:, :, :, 0] = True
    exact: Any = torch.randn(3, 2, 4, 9, 8).requires_grad_()
    rounded = exact.detach().bfloat16().requires_grad_()
    module: Any = torch.nn.Module()
    module.is_causal = False

    def attend(states):
        found, _ = attention._attention(module, states[0], states[1], states[2], mask, dropout=0.0, scaling=0.3)
        (gradient,) = torch.autograd.grad(found, states, slope.to(found.dtype))
        return found.detach(), gradient

    for one, other in zip(attend(rounded), attend(exact), strict=True):
        assert one.dtype == torch.bfloat16
        assert 0 < (one.float() - other).abs().max() < 0.02 * other.abs().max()


def test_a_step_in_bf16_avoids_torchs_slow_attention_backward(batch):
    """On a CPU it took ten times as long as that of float32."""
    torch.manual_seed(1)
    model = MODELS["bert"]()
    packing.prepare(model)
    for precision in ("fp32", "bf16"):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
            with autocast(torch.device("cpu"), precision):
                loss = packing.logits(model, batch, packed=False).sum()
            loss.backward()
        names = {event.key for event in seen.key_averages()}
        slow = "aten::_scaled_dot_product_flash_attention_for_cpu_backward"
        assert (slow in names) == (precision == "fp32")
