"""Gradients do not depend on how much fits into memory: large groups, memory that runs out, layers computed again."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from decoders import PLAIN, build_decoder
from safetensors.torch import load_file

from trainer.data import build_collection
from trainer.data.groups import Group
from trainer.errors import RunError
from trainer.model import Reranker, ScoringModel, TokenizedCollection, word_gradients
from trainer.model.batching import TOKENS_PER_BUCKET
from trainer.model.word_gradients import words_in_place
from trainer.recipe import Data, Train
from trainer.training.gradients import GradientStep
from trainer.training.optimizer import configure_model


@pytest.fixture
def long_pairs(monkeypatch):
    """Buckets of 512 tokens whatever the pass, so that both ways draw the same random numbers."""
    monkeypatch.setitem(TOKENS_PER_BUCKET, "cpu", 512)


@pytest.fixture
def collection(tmp_path, words):
    """12 queries and 130 documents, each document cut at 64 tokens but for a few short ones."""
    folder = tmp_path / "long"
    (folder / "qrels").mkdir(parents=True)
    text = " ".join(words)
    rows = [f'{{"_id": "{row}", "text": "{text if row % 5 else text[: 60 + row]}"}}' for row in range(130)]
    (folder / "corpus.jsonl").write_text("\n".join(rows))
    (folder / "queries.jsonl").write_text(
        "\n".join(f'{{"_id": "q{row}", "text": "{words[row]} {words[-row]}"}}' for row in range(12))
    )
    for split, queries in {"train": range(8), "dev": (8, 9), "test": (10, 11)}.items():
        lines = ["query-id\tcorpus-id\tscore", *(f"q{query}\t{query}\t1" for query in queries)]
        (folder / "qrels" / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    return build_collection(Data(path=folder), tmp_path / "data")


def group(query, size):
    return Group(query, positives=[query], grades=[1], negatives=[(query + row) % 130 for row in range(1, size)])


class Gradients:
    """`gradients(groups, tokens_per_pass, ...)`: loss and gradients of one step from the same weights and numbers."""

    def __init__(self, folder, collection):
        self.folder, self.collection = folder, collection
        self.step: GradientStep

    def __call__(self, groups, tokens_per_pass, wrap=lambda model: model, **settings):
        section = Train(tokens_per_pass=tokens_per_pass, **settings)
        torch.manual_seed(5)
        reranker = Reranker.load(self.folder, max_length=64)
        configure_model(section, reranker)
        accelerator = Accelerator(cpu=True)
        model = accelerator.prepare(wrap(ScoringModel(reranker)))
        tokenized = TokenizedCollection(self.collection, reranker.pairs)
        self.step = GradientStep(section, groups, reranker, tokenized, accelerator, model)
        torch.manual_seed(7)
        loss, pairs = self.step.accumulate(self.step.prepare(range(len(groups)))).tolist()
        assert pairs == sum(len(group.documents) for group in groups)
        assert reranker.model.training
        named = {name: weight.grad for name, weight in reranker.model.named_parameters()}
        return loss, {name: grad for name, grad in named.items() if grad is not None}, torch.get_rng_state()


@pytest.fixture
def gradients(tiny, collection):
    return Gradients(tiny["bert"], collection)


def assert_same(one, other, within=1e-6):
    """The losses, the gradients (their difference `within` this share of their norm), and the next random number."""
    assert one[0] == pytest.approx(other[0], rel=within)
    ours, theirs = (torch.cat([gradient.flatten() for gradient in found[1].values()]) for found in (one, other))
    assert (ours - theirs).norm() <= within * ours.norm()
    assert torch.equal(one[2], other[2])


@pytest.mark.usefixtures("long_pairs")
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_group_over_the_budget_gives_the_gradients_of_one_that_fits(gradients, dropout):
    groups = [group(0, 40)]
    at_once = gradients(groups, 100_000, dropout=dropout)
    tokens = gradients.step.real_tokens, gradients.step.computed_tokens
    assert tokens[0] > 4 * 512
    assert_same(at_once, gradients(groups, 512, dropout=dropout))
    # Read twice, but counted once.
    assert tokens == (gradients.step.real_tokens, gradients.step.computed_tokens)
    assert gradients.step.padding > 0


def test_large_and_small_groups_of_a_step_give_the_gradients_of_one_pass(gradients):
    groups = [group(2, 3), group(0, 40), group(1, 9), group(3, 2)]
    # Other buckets, so other roundings, which the head sharpens.
    assert_same(gradients(groups, 100_000), gradients(groups, 512), within=1e-4)


@pytest.mark.usefixtures("long_pairs")
@pytest.mark.parametrize("settings", [{"dropout": 0.1}, {"gradient_checkpointing": True}], ids=["dropout", "layers"])
def test_an_adapter_has_the_gradients_of_one_pass_bucket_by_bucket(collection, words, tmp_path, settings):
    pytest.importorskip("peft")
    gradients = Gradients(build_decoder("qwen3", tmp_path / "decoder", words, PLAIN), collection)
    settings |= {"adapter": "lora", "adapter_score_row": "trained"}
    at_once = gradients([group(0, 40)], 100_000, **settings)
    assert gradients.step.real_tokens > 4 * 512
    assert all(".lora_" in name or name == "score.weight" for name in at_once[1])
    assert_same(at_once, gradients([group(0, 40)], 512, **settings), within=1e-5)


class Kept:
    """What autograd keeps for the way back, in bytes: now, and at most."""

    def __init__(self):
        self.now = self.most = 0

    def pack(self, tensor):
        self.now += tensor.nbytes
        self.most = max(self.most, self.now)
        return _Held(self, tensor)


class _Held:
    def __init__(self, kept, tensor):
        self.kept, self.tensor = kept, tensor

    def __del__(self):
        self.kept.now -= self.tensor.nbytes


def test_a_group_of_128_needs_the_memory_of_one_of_8(gradients):
    most = []
    for size in (8, 128):
        kept = Kept()
        with torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda held: held.tensor):
            gradients([group(1, size)], 512)
        assert kept.now == 0
        most.append(kept.most)
    assert most[1] <= 1.3 * most[0]


class Small(torch.nn.Module):
    """A model on a device that holds the graph of `room` tokens."""

    def __init__(self, model, room):
        super().__init__()
        self.model, self.room = model, room
        self.held = []

    def forward(self, batches):
        scores = self.model(batches)
        if torch.is_grad_enabled():
            self.held.append(sum(batch["input_ids"].numel() for batch in batches.parts) <= self.room)
            if not self.held[-1]:
                raise torch.OutOfMemoryError("out of memory")
        return scores


def test_a_step_that_runs_out_of_memory_is_repeated_with_half_the_budget(gradients, capsys):
    groups = [group(0, 11), group(1, 8), group(2, 8)]
    whole = gradients(groups, 1024, dropout=0.1)
    capsys.readouterr()
    again = gradients(groups, 1024, wrap=lambda model: Small(model, 720), dropout=0.1)
    assert gradients.step.model.held[:2] == [True, False], "there were gradients to throw away"
    told = capsys.readouterr().out
    assert told.count("out of memory with 1024 tokens in a pass; the step is repeated with 512") == 1
    assert "Set train.tokens_per_pass=512" in told
    assert gradients.step.budget == 512
    half = gradients(groups, 512, dropout=0.1)
    assert_same(half, again, within=0)
    assert whole[0] != again[0]


def test_memory_that_never_suffices_is_an_error_with_advice(gradients):
    with pytest.raises(RunError) as caught:
        gradients([group(0, 15)], 600, wrap=lambda model: Small(model, 100))
    assert str(caught.value) == (
        "train: out of memory with only 600 tokens in a pass; lower reranker.max_length or "
        "mine.negatives_per_positive, or set train.gradient_checkpointing=true"
    )


def test_memory_that_never_suffices_is_tried_once_for_each_halving_of_the_budget(gradients):
    with pytest.raises(RunError, match="out of memory with only 512 tokens in a pass"):
        gradients([group(0, 15)], 8192, wrap=lambda model: Small(model, 0))
    assert len(gradients.step.model.held) == len([8192, 4096, 2048, 1024, 512])


@pytest.mark.parametrize("base", ["bert", "roberta", "modernbert", "reranker"])
def test_gradient_checkpointing_gives_the_same_gradients(tiny, collection, base):
    gradients = Gradients(tiny[base], collection)
    found, most = [], []
    for checkpointing in (False, True):
        kept = Kept()
        with torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda held: held.tensor):
            found.append(gradients([group(0, 8)], 512, dropout=0.1, gradient_checkpointing=checkpointing))
        most.append(kept.most)
    assert_same(*found)
    assert most[1] < most[0]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning")  # torch's own, on import
def test_a_compiled_model_is_saved_under_plain_names(tiny, tmp_path):
    names = []
    for compiled in (False, True):
        reranker = Reranker.load(tiny["bert"], max_length=64)
        configure_model(Train(compile=compiled), reranker)
        assert (reranker.model._compiled_call_impl is not None) == compiled
        accelerator = Accelerator(cpu=True)
        accelerator.prepare(ScoringModel(reranker))
        folders = [tmp_path / f"{name}-{compiled}" for name in ("state", "best")]
        accelerator.save_state(str(folders[0]))
        reranker.save(folders[1])
        names.append([sorted(load_file(folder / "model.safetensors")) for folder in folders])
    assert names[0] == names[1]


def test_the_loss_is_the_mean_of_the_model_alone_and_with_the_first_stage(gradients):
    first = [1.2, -0.4, 0.3, -1.1]
    asked = replace(group(0, 4), first=first)
    scores = {}

    def loss(weight, *groups):
        gradients([*groups], 100_000)
        step = gradients.step
        step.first_stage_weight = weight
        step.model.zero_grad()
        value, _ = step.accumulate(step.prepare(range(len(groups)))).tolist()
        pairs = gradients.step.tokenized.pairs([(0, row) for row in asked.documents])
        scores["now"] = step.reranker.score_tokens(pairs)
        return value

    def listwise(values):
        return -torch.log_softmax(torch.tensor(values, dtype=torch.float64), 0)[0].item()

    both = loss(0.7, asked)
    alone, fused = listwise(scores["now"]), listwise(scores["now"] + 0.7 * np.array(first))
    assert both == pytest.approx((alone + fused) / 2, rel=1e-4)
    assert loss(0.0, asked) == pytest.approx(alone, rel=1e-4)
    assert loss(0.7, group(0, 4)) == pytest.approx(alone, rel=1e-4)  # a group without first-stage scores


def test_a_step_prepared_before_memory_ran_out_is_cut_again(gradients, monkeypatch):
    groups = [group(2, 3), group(0, 40), group(1, 9)]
    expected = gradients(groups, 512)
    gradients(groups, 100_000)
    step = gradients.step
    prepared = step.prepare(range(len(groups)))
    step.budget = 512
    step.model.zero_grad()
    used, attempt = [], step._attempt
    monkeypatch.setattr(step, "_attempt", lambda one: used.append(one) or attempt(one))
    assert step.accumulate(prepared)[0].item() == pytest.approx(expected[0], rel=1e-6)
    assert [one.budget for one in used] == [512]
    assert len(used[0].passes) > len(prepared.passes)


@pytest.mark.parametrize("budget", [512, 100_000])
def test_gradients_of_the_words_added_in_place_are_those_of_torch(gradients, monkeypatch, budget):
    groups = [group(2, 3), group(0, 40), group(1, 9)]
    in_place = gradients(groups, budget)
    monkeypatch.setattr(word_gradients, "_is_lookup", lambda words: False)
    assert_same(gradients(groups, budget), in_place)
    words = [name for name in in_place[1] if "word_embeddings" in name]
    assert len(words) == 1
    assert in_place[1][words[0]].count_nonzero() > 0


def test_the_padding_token_gets_no_gradient_and_the_embedding_is_left_as_it_was():
    words = torch.nn.Embedding(5, 4, padding_idx=3)
    model = SimpleNamespace(base_model=SimpleNamespace(get_input_embeddings=lambda: words))
    ids = torch.tensor([[1, 3, 1], [4, 3, 0]])
    weights = torch.arange(24.0).reshape(2, 3, 4)
    (words(ids) * weights).sum().backward()
    expected, words.weight.grad = words.weight.grad, None

    for share in (0.25, 0.75):  # of two batches, whose gradients are added up
        with words_in_place(model):
            (words(ids) * weights * share).sum().backward()

    torch.testing.assert_close(words.weight.grad, expected)
    assert "forward" not in vars(words)


@pytest.mark.parametrize("kind", [{"max_norm": 1.0}, {"scale_grad_by_freq": True}, {"sparse": True}])
def test_other_kinds_of_embeddings_are_left_to_torch(kind):
    words = torch.nn.Embedding(5, 4, **kind)
    with words_in_place(SimpleNamespace(base_model=SimpleNamespace(get_input_embeddings=lambda: words))):
        assert "forward" not in vars(words)
    with words_in_place(SimpleNamespace(base_model=SimpleNamespace(get_input_embeddings=lambda: words)), wanted=False):
        assert "forward" not in vars(words)
