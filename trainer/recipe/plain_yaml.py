"""YAML as plain values: the text of a recipe read safely, and no deeper or longer than a recipe can be."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from trainer.errors import RecipeError, did_you_mean

LARGEST = 1 << 20  # bytes of a recipe; a larger file is something else
DEEPEST = 20  # levels of lists and mappings in each other; a recipe needs four
TOO_DEEP = f"nested more than {DEEPEST} levels deep"
REPEATED = 5000  # values that aliases may repeat; without a limit a few lines can be billions


class PlainLoader(yaml.SafeLoader):
    """Safe YAML without dates: no recipe holds one, and `name: 2026-01-31` is a name."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def fetch_flow_collection_start(self, TokenClass: Any) -> None:  # noqa: N803 the name in PyYAML
        """Stop at a bracket too deep: the time that PyYAML takes grows with the square of the depth."""
        if self.flow_level > DEEPEST:
            raise yaml.MarkedYAMLError(problem=TOO_DEEP, problem_mark=self.get_mark())
        super().fetch_flow_collection_start(TokenClass)


def read_text(path: Path) -> str:
    """Return the content of a recipe; raises RecipeError where it cannot be one."""
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise RecipeError(f"{path}: has more than {LARGEST:,} bytes, so it is no recipe")
        return content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except FileNotFoundError:
        if path.is_symlink():
            raise RecipeError(f"{path}: is a link to {os.readlink(path)}, which is not there; mend the link") from None
        beside = [file.name for file in path.parent.glob("*.yaml")]
        near = did_you_mean(path.name, beside) if beside else f"; {path.parent} holds no .yaml file"
        raise RecipeError(f"{path}: no such recipe{near}") from None
    except OSError as error:
        raise RecipeError(f"{str(path)[:200]}: cannot be read ({error.strerror}); name a file that can be") from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"{str(path)[:200]}: cannot be read as UTF-8 text: {str(error)[:200]}") from None


def compose(text: str) -> yaml.Node | None:
    """Return the nodes of a YAML text; raises MarkedYAMLError also for one that is nested or repeats without end."""
    try:
        root = yaml.compose(text, Loader=PlainLoader)
    except RecursionError:
        raise yaml.MarkedYAMLError(problem=TOO_DEEP) from None
    if root is not None:
        _limit(root)
    return root


def _limit(root: yaml.Node) -> None:
    """Raise MarkedYAMLError for what is nested too deep, or for aliases that repeat too many values.

    A value that holds itself is left to the constructor, which names it.
    """
    seen: set[int] = set()
    repeated = 0
    stack: list[tuple[yaml.Node, tuple[int, ...]]] = [(root, ())]
    while stack:
        node, above = stack.pop()
        if id(node) in above:
            continue
        repeated += id(node) in seen
        seen.add(id(node))
        if repeated > REPEATED:
            problem = f"its aliases (*) repeat more than {REPEATED:,} values"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        if len(above) > DEEPEST:
            raise yaml.MarkedYAMLError(problem=TOO_DEEP, problem_mark=node.start_mark)
        below = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
        stack += [(part, (*above, id(node))) for part in below if isinstance(part, yaml.Node)]
