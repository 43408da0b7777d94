"""Every recipe can be read and says in its head what it does; every command of the README exists."""

import re
import shlex
from pathlib import Path

import pytest

from trainer.recipe import load_recipe, schema_table, sections

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_there_are_recipes():
    assert {path.stem for path in RECIPES} >= {"quickstart", "cosqa", "scifact"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_can_be_read_and_tells_command_and_result(path):
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    head = path.read_text(encoding="utf-8").split("\nname:")[0]
    assert f"train recipes/{path.name}" in head
    assert re.search(r"# Measured.*nDCG@10|# Not measured yet", head, re.S)


def test_readme_commands_name_recipes_that_are_there():
    lines = [line.strip() for block in re.findall(r"```bash\n(.*?)```", README, re.S) for line in block.splitlines()]
    named = [word for line in lines for word in shlex.split(line, comments=True) if word.startswith("recipes/")]
    assert named
    assert all((ROOT / word).is_file() for word in named)


def test_readme_table_is_the_schema():
    for name, section in sections().items():
        for key, default, _ in schema_table(section):
            assert f"| `{name}.{key}` | {default} |" in README, f"{name}.{key} = {default}"
