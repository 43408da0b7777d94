"""Recipes and launch files are valid, and their heads name the command that runs them."""

import re
import shlex
from pathlib import Path

import pytest
from accelerate.commands.launch import _validate_launch_command, launch_command_parser

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
