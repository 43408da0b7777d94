"""Safe reading of YAML as plain values, with limits on size, depth and aliases."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

from trainer.errors import RecipeError, did_you_mean

MAX_BYTES = 1 << 20  # of a recipe; a larger file is not one
MAX_DEPTH = 20  # nested lists and mappings; a recipe needs four levels
TOO_DEEP = f"nested more than {MAX_DEPTH} levels deep"
MAX_REPEATED = 5000  # values that aliases may repeat; without a limit a few lines can expand to billions of values


class PlainLoader(yaml.SafeLoader):
    """Safe YAML without dates: a recipe needs none, and `name: 2026-01-31` is a name."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def fetch_flow_collection_start(self, TokenClass: Any) -> None:  # noqa: N803 the name in PyYAML
        """Limit the depth of brackets, since the time that PyYAML takes grows with the square of the depth."""
        if self.flow_level > MAX_DEPTH:
            raise yaml.MarkedYAMLError(problem=TOO_DEEP, problem_mark=self.get_mark())
        super().fetch_flow_collection_start(TokenClass)


def read_text(path: Path) -> str:
    """Return the text of a recipe; raises RecipeError if it is too large, missing or not UTF-8."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise RecipeError(f"{path}: has more than {MAX_BYTES:,} bytes, so it is not a recipe")
        return content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except FileNotFoundError:
        if path.is_symlink():
            target = os.readlink(path)
            raise RecipeError(f"{path}: is a link to {target}, which does not exist; correct the link") from None
        siblings = [file.name for file in path.parent.glob("*.yaml")]
        near = did_you_mean(path.name, siblings) if siblings else f"; {path.parent} holds no .yaml file"
        raise RecipeError(f"{path}: no such recipe{near}") from None
    except IsADirectoryError:
        raise RecipeError(f"{path}: is a folder, and not a recipe; {_recipe_of(path)}") from None
    except OSError as error:
        raise RecipeError(f"{str(path)[:200]}: cannot be read ({error.strerror}); name a readable file") from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"{str(path)[:200]}: cannot be read as UTF-8 text: {str(error)[:200]}") from None


def _recipe_of(folder: Path) -> str:
    """Return the advice for a folder that was given as a recipe; a run folder has the recipes of its stages."""
    used = sorted(folder.glob("*/recipe.json"), key=lambda path: path.stat().st_mtime_ns)
    if used:
        return f"the recipe of this run's last stage is {used[-1]}, so name that, or the recipe that you ran"
    written = sorted(folder.glob("*.yaml"))
    return f"it holds {', '.join(map(str, written[:5]))}" if written else f"to make one: reranker init {folder}"


def compose(text: str) -> yaml.Node | None:
    """Return the root node of a YAML text; raises MarkedYAMLError also if it exceeds the limits of depth or aliases."""
    try:
        root = yaml.compose(text, Loader=PlainLoader)
    except RecursionError:
        raise yaml.MarkedYAMLError(problem=TOO_DEEP) from None
    if root is not None:
        _check_limits(root)
    return root


def _check_limits(root: yaml.Node) -> None:
    """Raise MarkedYAMLError for values that are nested too deep, or for aliases that repeat too many values.

    A value that contains itself is left to the constructor, which names it in its error.
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
        if repeated > MAX_REPEATED:
            problem = f"its aliases (*) repeat more than {MAX_REPEATED:,} values"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
        if len(above) > MAX_DEPTH:
            raise yaml.MarkedYAMLError(problem=TOO_DEEP, problem_mark=node.start_mark)
        below = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
        stack += [(part, (*above, id(node))) for part in below if isinstance(part, yaml.Node)]
