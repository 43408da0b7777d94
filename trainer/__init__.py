"""Fine-tune a reranker on your own domain. The path is told in `trainer.pipeline`; start there."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.errors import TrainerError
    from trainer.recipe import Recipe, load_recipe

__version__ = "0.1.0"
__all__ = ["Recipe", "TrainerError", "load_recipe"]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that a command starts, and stops, without delay."""
    if name not in __all__:
        raise AttributeError(f"module 'trainer' has no attribute {name!r}")
    return getattr(import_module("trainer.errors" if name == "TrainerError" else "trainer.recipe"), name)
