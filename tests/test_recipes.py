"""Recipes and launch files are valid, and their heads name the command that runs them."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    ModernBertConfig,
    Qwen3Config,
    XLMRobertaConfig,
)

from trainer.forecast import memory
from trainer.recipe import load_recipe

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
LAUNCHES = [ROOT / "accelerate_config.yaml", *sorted((ROOT / "recipes" / "accelerate").glob("*.yaml"))]


def test_there_are_recipes():
    assert {path.stem for path in RECIPES} >= {"quickstart", "cosqa", "scifact"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_can_be_read_and_states_its_command_and_result(path):
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    head = path.read_text(encoding="utf-8").split("\nname:")[0]
    assert f"train recipes/{path.name}" in head
    assert re.search(r"# Measured.*nDCG@10|# Not measured yet", head, re.S)


# The configurations of the published models, as far as they decide the number of weights.
LARGE = {
    "hidden_size": 1024,
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "intermediate_size": 4096,
    "num_labels": 1,
}
HARDWARE = [
    ("qwen3-reranker", ("train.adapter=lora",), AutoModelForCausalLM),
    ("qwen3-reranker", ("train.adapter=none", "export.adapter=false"), AutoModelForCausalLM),
    ("bge-m3", (), AutoModelForSequenceClassification),
    ("modernbert", (), AutoModelForSequenceClassification),
]
CONFIGS = {
    "qwen3-reranker": Qwen3Config(
        vocab_size=151669,
        hidden_size=1024,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        intermediate_size=3072,
        tie_word_embeddings=True,
    ),
    "bge-m3": XLMRobertaConfig(vocab_size=250002, max_position_embeddings=8194, type_vocab_size=1, **LARGE),
    "modernbert": ModernBertConfig(num_labels=1),
}


@pytest.mark.parametrize(("name", "overrides", "auto"), HARDWARE)
def test_the_hardware_in_a_head_is_the_forecasts(name, overrides, auto, monkeypatch):
    with torch.device("meta"):
        model = auto.from_config(CONFIGS[name])
    shapes = {weight: tuple(tensor.shape) for weight, tensor in model.state_dict().items()}
    monkeypatch.setattr(memory.checks, "read_headers", lambda _: shapes)
    monkeypatch.setattr(memory.references, "locate", lambda _: None)
    monkeypatch.setattr(memory, "device_memory", lambda: ("cuda", 80e9))
    path = ROOT / "recipes" / f"{name}.yaml"
    needed = memory.memory_before_loading(load_recipe(path, overrides))
    assert f" {memory.gigabytes(needed.total)} " in path.read_text().split("\nname:")[0]


@pytest.mark.filterwarnings("ignore")  # about GPUs that are not there
@pytest.mark.parametrize("path", LAUNCHES, ids=lambda path: path.stem)
def test_accelerate_knows_every_key_of_a_launch_file_whose_head_has_the_command(path):
    name = path.relative_to(ROOT)
    head = path.read_text(encoding="utf-8").split("\ncompute_environment:")[0]
    (words,) = re.findall(r"accelerate launch (.*)", head)
    options = launch_command_parser().parse_args(shlex.split(words))
    assert options.config_file == str(name)
    options.config_file = str(path)
    args, launch, _ = _validate_launch_command(options)  # unknown keys at the top level end here
    assert args.mixed_precision == "bf16"
    known = vars(launch_command_parser().parse_args(["script.py"]))
    assert set(launch.fsdp_config) <= set(known)
    assert args.multi_gpu != args.use_fsdp
    if args.use_fsdp:
        assert (args.fsdp_version, args.fsdp_cpu_ram_efficient_loading) == (2, False)
