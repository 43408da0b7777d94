"""Fine-tune a reranker on your own domain: from documents, queries and qrels to an evaluated and exported model.

The names of `__all__` are the public API (docs/python.md). The code is best read from `trainer.pipeline` on.
"""

from typing import TYPE_CHECKING

from trainer.lazy import face

if TYPE_CHECKING:
    from trainer.context.result import RunResult as RunResult
    from trainer.data import Collection as Collection
    from trainer.errors import TrainerError as TrainerError
    from trainer.library import evaluate as evaluate
    from trainer.library import mine as mine
    from trainer.model import Reranker as Reranker
    from trainer.pipeline import run as run
    from trainer.recipe import Recipe as Recipe
    from trainer.recipe import load_recipe as load_recipe

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

__getattr__ = face(__name__)
