"""Imports only run down: the map in the README, checked."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "trainer"
FLOORS = [
    {"errors", "losses", "metrics", "console", "interaction"},
    {"recipe", "data", "models"},
    {"runs", "track"},
    {"retriever", "batches", "report"},
    {"reranker"},
    {"mine", "train", "evaluate", "export", "push"},  # the stages never import each other
    {"pipeline"},
    {"cli"},
    {"__main__"},
]
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")


def imports(module: str) -> set[str]:
    """Modules of the package that a module imports, anywhere in it."""
    tree = ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "trainer":
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("trainer."):
            found.add(str(node.module).split(".")[1])
    return found


def test_every_module_has_a_floor():
    assert set(MODULES) == set(FLOOR)


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_down(module):
    upward = {other for other in imports(module) if FLOOR[other] >= FLOOR[module]}
    assert not upward, f"{module} (floor {FLOOR[module]}) imports {upward}"


def test_the_modeling_file_stands_alone():
    assert imports("interaction") == set()
