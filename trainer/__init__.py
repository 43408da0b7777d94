"""Fine-tune a reranker on your own domain: corpus, queries and judgements in, a measured and exported model out.

The path through the code begins in `trainer.pipeline`.
"""

from typing import TYPE_CHECKING

from trainer.lazy import face

if TYPE_CHECKING:
    from trainer.context.result import RunResult as RunResult
    from trainer.data import Collection as Collection
    from trainer.errors import TrainerError as TrainerError
    from trainer.model import Reranker as Reranker
    from trainer.pipeline import run as run
    from trainer.recipe import Recipe as Recipe
    from trainer.recipe import load_recipe as load_recipe

__version__ = "0.1.0"
__all__ = ["Collection", "Recipe", "Reranker", "RunResult", "TrainerError", "load_recipe", "run"]

__getattr__ = face(__name__)
