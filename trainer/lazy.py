"""Packages whose names are imported on first use, so that a command that needs no torch does not load it."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any


def face(package: str) -> Callable[[str], Any]:
    """Return a `__getattr__` (PEP 562) that imports a name when it is first used.

    The names are those that the package's `__init__.py` imports for type checkers, under TYPE_CHECKING: one list for
    both.
    """

    @cache
    def modules() -> dict[str, str]:
        """Return {name: the module that has it}."""
        tree = ast.parse(Path(str(sys.modules[package].__file__)).read_text(encoding="utf-8"))
        blocks = [node for node in tree.body if isinstance(node, ast.If)]
        imports = [node for block in blocks for node in block.body if isinstance(node, ast.ImportFrom)]
        return {alias.name: str(node.module) for node in imports for alias in node.names}

    def load(name: str) -> Any:
        if name.startswith("__") or name not in modules():
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(modules()[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    return load
