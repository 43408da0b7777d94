"""What is fitted before the first step: a fresh interaction head, or the mixture of a standard checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast

from trainer.data.groups import Group
from trainer.model import Mixture, Reranker, TokenizedCollection
from trainer.model.scoring import Row
from trainer.recipe import Recipe
from trainer.runtime.launch import on_main
from trainer.training.head_init import start_head
from trainer.training.mixture import start_mixture


def fit_start(
    recipe: Recipe,
    reranker: Reranker,
    tokenized: TokenizedCollection,
    lists: Sequence[Group],
    accelerator: Accelerator,
    folder: Path,
) -> tuple[float, dict[Row, int]]:
    """Fit the head or the mixture on the main process, and broadcast it.

    Return the first stage's weight in the loss, and the index of each document's best window where a fit chose it. It
    is fitted once, because fits on several devices differ in the last bits, and saved in the folder as fitted.json.
    """

    def fit() -> tuple[float, dict[Row, int], Mixture | None]:
        start = start_head if reranker.is_interaction else start_mixture
        fitted = start(reranker, tokenized, lists, recipe.train.fit_lists, recipe.reranker.lexical_signals)
        fitted.save(folder)
        return fitted.first_stage_weight, fitted.windows, reranker.mixture

    weight, windows, reranker.mixture = on_main(accelerator, fit)
    if reranker.is_interaction:
        for name, tensor in reranker.model.state_dict().items():
            if not name.startswith("encoder."):
                broadcast(tensor)
    return weight, windows
