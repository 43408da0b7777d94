"""The recipes and launch files are valid and describe themselves; README's commands and table are up to date."""

import re
import shlex
from pathlib import Path

import pytest
import typer
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from torch.distributed.run import get_args_parser

from trainer.commands.cli import reranker_app, train_app
from trainer.errors import RecipeError
from trainer.recipe import load_recipe, schema_table, sections

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
LAUNCHES = [ROOT / "accelerate_config.yaml", *sorted((ROOT / "recipes" / "accelerate").glob("*.yaml"))]
README = (ROOT / "README.md").read_text(encoding="utf-8")
GUIDES = README + (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")


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


UsageError = typer.BadParameter.__bases__[0]  # of the click that this typer uses, which may be its own copy
COMMANDS = [
    shlex.split(line, comments=True)
    for block in re.findall(r"```bash\n(.*?)```", GUIDES, re.S)
    for line in block.splitlines()
]


def parse(words: list[str]) -> list[str]:
    """Read a command of README's with the parser of the program that it names; return the words that name files."""
    program, *rest = words
    if program in ("python3", "pip"):
        return [word for word in rest if word.endswith(".txt")]
    if program == "accelerate":
        options = launch_command_parser().parse_args(rest[1:])
        return [options.config_file, *parse(["train", *options.training_script_args])]
    if program == "torchrun":
        return parse(["train", *get_args_parser().parse_args(rest).training_script_args])
    if program in ("train", "reranker"):
        command = typer.main.get_command({"train": train_app, "reranker": reranker_app}[program])
        if hasattr(command, "commands"):
            command, rest = command.commands[rest[0]], rest[1:]
        given = command.make_context(program, list(rest)).params
        recipe = given.get("recipe")
        if recipe is None or not recipe.is_relative_to("recipes"):
            return []  # a recipe of the reader's own
        load_recipe(ROOT / recipe, given.get("overrides") or ())
        return [str(recipe)]
    assert (ROOT / program).stat().st_mode & 0o111, f"{program} cannot be run"
    return [program]


def test_readme_commands_are_those_that_the_programs_know_and_their_files_are_there():
    named = [name for words in COMMANDS if words for name in parse(words)]
    assert {"scripts/quickstart", "recipes/quickstart.yaml", "accelerate_config.yaml"} <= set(named)
    assert [name for name in named if not (ROOT / name).is_file()] == []


@pytest.mark.parametrize(
    "line",
    [
        "train recipes/quickstart.yaml trian.epochs=2",
        "train recipes/quickstart.yaml --epochs 2",
        "reranker mien recipes/quickstart.yaml",
        "accelerate launch --no-such-option -m trainer recipes/quickstart.yaml",
        "torchrun --nproc-per-node 2 -m trainer recipes/quickstart.yaml trian.epochs=2",
        "scripts/no-such-script",
    ],
)
def test_a_command_that_its_program_refuses_fails_the_check(line):
    with pytest.raises((UsageError, RecipeError, KeyError, OSError, SystemExit)):
        parse(shlex.split(line))


def test_readme_table_is_the_schema_row_by_row():
    table = re.findall(r"<!-- schema -->\n(.*?)<!-- /schema -->", README, re.S)[0].splitlines()
    rows = [
        f"| `{name}.{key}` | {default} | {meaning} |"
        for name, section in sections().items()
        for key, default, meaning in schema_table(section)
    ]
    assert table[2:] == rows
