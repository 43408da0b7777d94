"""Fine-tune a reranker on your own domain: from documents, queries and qrels to an evaluated and exported model.

The names of `__all__` are the public API (docs/python.md). The code is best read from `trainer.pipeline` on.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.context.result import RunResult
    from trainer.data import Collection
    from trainer.errors import TrainerError
    from trainer.library import evaluate, mine
    from trainer.model import Reranker
    from trainer.pipeline import run
    from trainer.recipe import Recipe, load_recipe

__version__ = "0.1.0"
__all__ = [
    "Collection",
    "Recipe",
    "Reranker",
    "RunResult",
    "TrainerError",
    "evaluate",
    "load_recipe",
    "mine",
    "run",
]

_MODULES = {
    "Collection": "trainer.data",
    "Recipe": "trainer.recipe",
    "Reranker": "trainer.model",
    "RunResult": "trainer.context.result",
    "TrainerError": "trainer.errors",
    "evaluate": "trainer.library",
    "load_recipe": "trainer.recipe",
    "mine": "trainer.library",
    "run": "trainer.pipeline",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that commands start without delay."""
    if name not in _MODULES:
        raise AttributeError(f"module 'trainer' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
