"""Fine-tune a reranker on your own domain. The path is told in `trainer.pipeline`; start there."""

from trainer.errors import TrainerError
from trainer.recipe import Recipe, load_recipe

__version__ = "0.1.0"
__all__ = ["Recipe", "TrainerError", "load_recipe"]
