"""Decoders trained: a toy task over the whole path, LoRA, resume, several processes, packing, the exported folder."""

import json
import shutil
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from decoders import FAMILIES, build_toy
from safetensors.torch import load_file
from sentence_transformers import CrossEncoder
from transformers import AutoModelForSequenceClassification, GPT2Config, GPT2ForSequenceClassification

from trainer.data import Collection
from trainer.data.groups import read_groups
from trainer.errors import RecipeError, RunError
from trainer.export.contents import Contents
from trainer.export.readers import score_transformers
from trainer.export.vllm import vllm_faults
from trainer.model import Reranker, packing
from trainer.model_files.decoders import Prompting
from trainer.pipeline import run
from trainer.recipe import Train, load_recipe
from trainer.training import loop
from trainer.training.adapter import add_adapter, lora_config, merged, save_adapter
from trainer.training.optimizer import configure_model, default_rate_of_adapter

pytest.importorskip("peft")
LORA = ("train.adapter=lora", "train.learning_rate=1e-2", "export.adapter=true", "train.adapter_score_row=trained")
PAIRS = [
    ("a1 a2", "a3 a4 a5"),
    ("b1", "c1 c2"),
    ("h5 h0 zzz", ""),
    ("", "d1"),
    ("e1 e2", "e3 " * 50),
    ("f1", "f2"),
    ("g", "g1"),
]


def results(runs: Path) -> dict:
    return json.loads((runs / "tiny" / "evaluate" / "results.json").read_text())["systems"]


def losses(runs: Path) -> list[float]:
    lines = (runs / "tiny" / "train" / "metrics.jsonl").read_text().splitlines()
    return [row["loss"] for row in map(json.loads, lines) if "loss" in row]


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["none", "lora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_tiny_decoder_learns_a_toy_task_and_its_folder_gives_the_same_scores(command, tmp_path, family, adapter):
    recipe = build_toy(tmp_path, family, queries=120 if adapter == "none" else 240)
    words = (*LORA, "train.epochs=8") if adapter == "lora" else ()
    ended = command(recipe, *words, "--force", "--runs", tmp_path / "runs")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    systems = results(tmp_path / "runs")
    assert systems["base"]["nDCG@10"]["mean"] < 0.7
    # Rounding decides how far an adapter gets in eight epochs: .88 on a Zen 5, above .9 on a Xeon with AMX.
    assert systems["tuned"]["nDCG@10"]["mean"] > (0.8 if adapter == "lora" else 0.9)
    folder = tmp_path / "runs" / "tiny" / "export" / "model"
    done = json.loads((folder.parents[1] / "export" / "done.json").read_text())
    assert set(done["differences"]) == {"transformers", "padded batches", "sentence-transformers"}
    assert done["loads_in"] == ["transformers", "sentence-transformers", "vLLM"]
    scores = Reranker.load(folder).score(PAIRS)
    np.testing.assert_allclose(score_transformers(folder, PAIRS), scores, rtol=0, atol=1e-4)
    model = CrossEncoder(str(folder), device="cpu")
    np.testing.assert_allclose(model.predict(PAIRS, show_progress_bar=False), scores, rtol=0, atol=1e-4)
    assert (folder / "adapter").is_dir() == (adapter == "lora")
    if adapter == "lora":
        assert "adapter: largest score difference to the merged weights" in ended.stdout
        base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model", num_labels=1, pad_token_id=0)
        from peft import PeftModel

        with pytest.warns(FutureWarning, match="is_gradient_checkpointing"):
            tuned = PeftModel.from_pretrained(base, str(folder / "adapter")).merge_and_unload()
        tuned.save_pretrained(tmp_path / "by_peft")
        shutil.copytree(folder, tmp_path / "compared", ignore=shutil.ignore_patterns("*.safetensors", "adapter"))
        shutil.copy(tmp_path / "by_peft" / "model.safetensors", tmp_path / "compared")
        np.testing.assert_allclose(Reranker.load(tmp_path / "compared").score(PAIRS), scores, rtol=0, atol=1e-4)


class Killed(BaseException):
    """Stands for the end of the process: nothing catches it."""


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["none", "lora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_killed_and_started_again_ends_with_the_same_bits(command, tmp_path, monkeypatch, family, adapter):
    recipe = build_toy(tmp_path, family, queries=32)
    words = ["train.epochs=3", "train.checkpoint_steps=2", "--force", *(LORA if adapter == "lora" else ())]
    words += ["train.dropout=0.2"] if adapter == "lora" else []
    assert command(recipe, *words, "--runs", tmp_path / "whole").returncode == 0
    save = loop.save_checkpoint

    def die_at_step_6(progress, *arguments):
        if progress.step == 6:
            raise Killed
        save(progress, *arguments)

    monkeypatch.setattr(loop, "save_checkpoint", die_at_step_6)
    with pytest.raises(Killed):
        command(recipe, *words, "--runs", tmp_path / "killed")
    monkeypatch.undo()
    resumed = command(recipe, *words, "--runs", tmp_path / "killed")
    assert "resumed at step 4" in resumed.stdout, resumed.stdout + resumed.stderr
    assert losses(tmp_path / "whole") == losses(tmp_path / "killed")
    one, other = (
        load_file(tmp_path / runs / "tiny" / "train" / "best" / "model.safetensors") for runs in ("whole", "killed")
    )
    assert all(torch.equal(one[name], other[name]) for name in one | other)


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["none", "lora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_two_processes_give_the_losses_of_one(command, tmp_path, family, adapter):
    recipe = build_toy(tmp_path, family, queries=33)
    words = ["train.epochs=2", "train.tokens_per_pass=512", "--force", *(LORA if adapter == "lora" else ())]
    words += [
        "train.learning_rate=1e-3"
    ]  # AdamW multiplies rounding errors of gradients that begin at zero by the rate
    for processes in (1, 2):
        ended = command(recipe, *words, "--runs", tmp_path / str(processes), processes=processes)
        assert ended.returncode == 0, ended.stdout + ended.stderr
    one = losses(tmp_path / "1")
    assert len(one) == 10
    np.testing.assert_allclose(losses(tmp_path / "2"), one, atol=1e-5)
    assert results(tmp_path / "1")["tuned"] == results(tmp_path / "2")["tuned"]


@pytest.fixture
def toy_model(tmp_path):
    """`toy_model(family)` is a tiny decoder with the toy task's prompt."""

    def toy_model(family: str) -> Reranker:
        template = build_toy(tmp_path / family, family, queries=1).parent
        prompting = Prompting(template / "template.jinja", tokens=("no", "yes"))
        return Reranker.load(template / "model", prompting=prompting, max_length=40)

    return toy_model


def shaken(reranker: Reranker) -> Reranker:
    """The model with an adapter that changes its scores."""
    add_adapter(Train(adapter="lora", adapter_rank=4), reranker, ranks=False)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in reranker.model.named_parameters():
            if ".lora_B" in name:
                weight.normal_(std=0.3)
    return reranker


@pytest.mark.parametrize("family", FAMILIES)
def test_merged_weights_give_the_scores_of_the_adapter(toy_model, tmp_path, family):
    reranker = toy_model(family)
    before = reranker.score(PAIRS)
    scores = shaken(reranker).score(PAIRS)
    assert np.abs(scores - before).max() > 0.01
    trained = [name for name, weight in reranker.model.named_parameters() if weight.requires_grad]
    assert all(".lora_" in name or name == "score.weight" for name in trained)
    assert len(trained) == 3 * 7 * 2 + 1  # layers, linear layers of each, two matrices; the score row
    reranker.save(tmp_path / "merged", merged(reranker.model.state_dict(), Train(adapter="lora", adapter_rank=4)))
    np.testing.assert_allclose(Reranker.load(tmp_path / "merged").score(PAIRS), scores, rtol=0, atol=1e-4)


def test_linear_layers_with_numbers_for_names_get_an_adapter(toy_model):
    reranker = toy_model("llama")
    for layer in reranker.model.model.layers:
        layer.mlp.down_proj = torch.nn.Sequential(layer.mlp.down_proj)
    plain = deepcopy(reranker)
    shaken(reranker)
    trained = [name for name, weight in reranker.model.named_parameters() if weight.requires_grad]
    assert "model.layers.2.mlp.down_proj.0.lora_A.default.weight" in trained
    assert len(trained) == 3 * 7 * 2 + 1
    plain.model.load_state_dict(merged(reranker.model.state_dict(), Train(adapter="lora", adapter_rank=4)))
    np.testing.assert_allclose(plain.score(PAIRS), reranker.score(PAIRS), rtol=0, atol=1e-4)


def test_a_model_without_linear_layers_has_no_adapter():
    model = GPT2ForSequenceClassification(GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=9, num_labels=1))
    with pytest.raises(RunError, match="train.adapter: lora needs linear layers, and gpt2 models have none"):
        lora_config(Train(adapter="lora"), model)


def test_the_adapters_file_names_the_linear_layers_in_order(toy_model, tmp_path):
    reranker = shaken(toy_model("gemma"))
    save_adapter(reranker.model.state_dict(), reranker.model, "base", tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    layers = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    assert (config["target_modules"], config["modules_to_save"]) == (layers, ["score"])


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_equals_padded_and_gradients_agree(toy_model, family):
    reranker = toy_model(family)
    batch = reranker.pairs.pad(reranker.pairs.tokenize_pairs(PAIRS))
    assert packing.can_pack(reranker.model)
    gradients, both = [], []
    for packed in (False, True):
        reranker.model.zero_grad()
        logits = packing.logits(reranker.model, batch, packed)
        logits.square().sum().backward()
        gradients.append({name: weight.grad.clone() for name, weight in reranker.model.named_parameters()})
        both.append(logits.detach())
    padded, unpadded = both
    np.testing.assert_allclose(unpadded, padded, rtol=0, atol=1e-5)
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-3, atol=1e-5)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        half = [packing.logits(reranker.model, batch, packed) for packed in (False, True)]
    spread = float(padded.max() - padded.min())
    assert float((half[0] - half[1]).abs().max()) < 0.05 * spread  # bf16 has eight bits: rounding differs by layout


def test_the_base_as_teacher_has_the_recipes_prompt(tmp_path):
    recipe = build_toy(tmp_path, "llama", queries=8)

    def scores(tokens: str) -> dict[tuple[int, int], float]:
        words = [f"mine.teacher={tmp_path / 'model'}", "mine.teacher_margin=null", f"reranker.tokens={tokens}"]
        folder = run(load_recipe(recipe, words), tmp_path / "runs", until="mine").folder
        groups = read_groups(folder / "mine")
        return {
            (group.query, document): score
            for group in groups
            for document, score in zip(group.documents, group.teacher or [], strict=True)
        }

    one, other = scores("[no,yes]"), scores("[yes,no]")
    shared = sorted(one.keys() & other.keys())
    assert len(shared) > 8
    np.testing.assert_allclose([other[pair] for pair in shared], [-one[pair] for pair in shared], rtol=0, atol=1e-5)
    prompting = Prompting(tmp_path / "template.jinja", tokens=("no", "yes"))
    reranker = Reranker.load(tmp_path / "model", prompting=prompting, max_length=32)
    collection = Collection.open(tmp_path / "runs" / "tiny" / "data")
    texts = [(collection.query_texts([query])[0], collection.passages([document])[0]) for query, document in shared]
    np.testing.assert_allclose(reranker.score(texts), [one[pair] for pair in shared], rtol=0, atol=1e-5)


def test_gradient_checkpointing_frozen_layers_and_the_score_row(toy_model):
    reranker = toy_model("qwen3")
    settings = {"adapter": "lora", "gradient_checkpointing": True, "frozen_layers": 2}
    configure_model(Train(**settings), reranker, ranks=True)
    reranker.model.train()
    batch = reranker.pairs.pad(reranker.pairs.tokenize_pairs(PAIRS))
    packing.logits(reranker.model, batch, packed=False).sum().backward()
    learnt = {name for name, weight in reranker.model.named_parameters() if weight.grad is not None}
    assert learnt
    assert all(name.startswith("model.layers.2.") and ".lora_" in name for name in learnt)
    other = toy_model("llama")
    configure_model(Train(adapter="lora", adapter_score_row="trained"), other, ranks=True)
    assert other.model.score.weight.requires_grad
    assert not other.model.model.embed_tokens.weight.requires_grad


def test_the_rates_of_an_adapter_fall_with_size_and_for_a_base_that_ranks():
    rates = [default_rate_of_adapter(int(millions * 1e6), ranks) for millions in (600, 8000) for ranks in (False, True)]
    assert rates == [2e-4, 1e-4, 1e-4, 5e-5]


def test_lora_on_an_encoder_is_advised_against_and_an_adapter_needs_lora(command, recipe_file, tmp_path):
    ended = command(recipe_file, "train.adapter=lora", "--runs", tmp_path)
    assert ended.returncode == 2
    assert "train.adapter: lora saves memory on large decoders" in ended.stderr
    with pytest.raises(RecipeError, match="no adapter to export without train.adapter: lora"):
        load_recipe(recipe_file, ["export.adapter=true"])


def test_vllm_rules_name_each_fault(toy_model, tmp_path):
    reranker = toy_model("qwen3")
    reranker.save(tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    config |= {"classifier_from_token": ["no", "yes"], "id2label": {"0": "a", "1": "b"}, "pad_token_id": None}
    (tmp_path / "saved" / "config.json").write_text(json.dumps(config))
    (tmp_path / "saved" / "chat_template.jinja").write_text("{{ messages[0].content }}")
    faults = vllm_faults(Contents(tmp_path / "saved"))
    assert len(faults) == 5
    for words in ("needs one label, not 2", "classifier_from_token", "sigmoid", "pad_token_id", "render query and"):
        assert any(words in fault for fault in faults)
