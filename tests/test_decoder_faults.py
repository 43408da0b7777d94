"""Faults of decoder recipes on the command line: one sentence each, exit code 2, and no traceback."""

import pytest
from decoders import build_toy

from trainer.forecast import memory
from trainer.model import Reranker

COMMANDS = [("reranker", "check"), ("train",)]
QUERY_ALONE = '{{ (messages | selectattr("role", "eq", "query") | first).content }} Yes or no?'


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """The recipe of a small task with a tiny Llama, whose folder has no chat template."""
    return build_toy(tmp_path_factory.mktemp("toy"), "llama", queries=8)


@pytest.fixture(params=COMMANDS, ids=" ".join)
def refused(request, call, tmp_path):
    """`refused(recipe, override, ...)` is the only line on standard error of a command that exits with 2."""

    def refused(recipe, *overrides):
        answer = call(*request.param, recipe, *overrides, "--runs", tmp_path / "runs")
        assert answer.code == 2, answer
        (line,) = answer.err.splitlines()
        assert "Traceback" not in answer.out
        assert not [path for path in tmp_path.glob("runs/*/*") if path.is_dir()]  # no stage has begun
        return line

    return refused


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("reranker.template=null", "is a decoder without a chat template; name a Jinja file as reranker.template"),
        ("reranker.template={query}", "its chat template renders the document 0 times instead of once; name a Jinja"),
        ("reranker.tokens=[]", "no tokens are known that make a score; name them as reranker.tokens: ["),
        ("reranker.tokens=[never, yes]", "its vocabulary has no token 'never'; name two of its tokens as"),
        ("reranker.head=interaction", "is a decoder, which cannot have the interaction head; use reranker.head: auto"),
        ("reranker.max_length=20000", "reads 16384 tokens at most, but reranker.max_length is 20000; lower it"),
    ],
)
def test_a_decoder_that_cannot_be_prompted_is_one_sentence(refused, toy, tmp_path, override, words):
    (tmp_path / "query.jinja").write_text(QUERY_ALONE)
    line = refused(toy, override.format(query=tmp_path / "query.jinja"))
    assert line.startswith(f"reranker.model: model {toy.parent / 'model'}: ")
    assert words in line


def test_a_template_file_that_is_missing_is_one_sentence(refused, toy, tmp_path):
    line = refused(toy, f"reranker.template={tmp_path / 'nowhere.jinja'}")
    assert f"reranker.template: {tmp_path / 'nowhere.jinja'}" in line


def test_a_missing_template_and_missing_tokens_are_told_at_once(call, toy, tmp_path):
    words = ("reranker.template=null", "reranker.tokens=[]", "--runs", tmp_path)
    answer = call("train", toy, *words)
    assert (answer.code, len(answer.err.splitlines())) == (2, 2)
    assert "without a chat template" in answer.err
    assert "no tokens are known" in answer.err


@pytest.mark.parametrize(
    ("size", "overrides", "advice"),
    [
        (1.5, (), "train.adapter=lora, or train.frozen_layers (two thirds of the layers), or a smaller reranker.model"),
        (0.5, ("train.adapter=lora",), "a smaller reranker.model"),
    ],
)
def test_a_base_that_does_not_fit_the_device_is_not_loaded(refused, toy, monkeypatch, size, overrides, advice):
    monkeypatch.setattr(memory, "LIBRARIES", {"cuda": 0.0})
    monkeypatch.setattr(memory, "device_memory", lambda: ("cuda", size * weights / memory.MARGIN))
    weights = (toy.parent / "model" / "model.safetensors").stat().st_size
    monkeypatch.setattr(Reranker, "load", lambda *_, **__: pytest.fail("the base was loaded"))
    line = refused(toy, "train.adapter_rank=1", *overrides)
    assert line.startswith(
        f"reranker.model: {toy.parent / 'model'} is too large for this machine: training needs about"
    )
    assert "; cuda has 0.0 GB; to make it fit: " in line
    assert line.endswith(f"to make it fit: {advice}")


def test_lora_on_an_encoder_is_advised_against(refused, recipe_file, tiny):
    line = refused(recipe_file, "train.adapter=lora")
    assert (
        f"train.adapter: lora saves memory on large decoders, and {tiny['bert']} is a bert encoder; train all" in line
    )
