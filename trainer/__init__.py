"""Fine-tune a reranker on your own domain: corpus, queries and judgements in, a measured and exported model out.

The path through the code begins in `trainer.pipeline`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.context.result import RunResult
    from trainer.data import Collection
    from trainer.errors import TrainerError
    from trainer.model import Reranker
    from trainer.pipeline import run
    from trainer.recipe import Recipe, load_recipe

__version__ = "0.1.0"
__all__ = ["Collection", "Recipe", "Reranker", "RunResult", "TrainerError", "load_recipe", "run"]

_MODULES = {
    "Collection": "trainer.data",
    "Recipe": "trainer.recipe",
    "Reranker": "trainer.model",
    "RunResult": "trainer.context.result",
    "TrainerError": "trainer.errors",
    "load_recipe": "trainer.recipe",
    "run": "trainer.pipeline",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that a command starts, and stops, without delay."""
    if name not in _MODULES:
        raise AttributeError(f"module 'trainer' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
