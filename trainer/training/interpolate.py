"""Weight interpolation between the model before training and the best one after it, chosen on dev.

Interpolated models retain more of the base's abilities (WiSE-FT: Wortsman et al., CVPR 2022). Three models are in
main memory meanwhile: both ends, and the one that is evaluated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from trainer.model import Reranker
from trainer.runtime import console, processes
from trainer.training.adapter import keep_adapter
from trainer.training.checkpoints import START, TRAINED, Progress
from trainer.training.schedule import BETWEEN


def choose(
    folder: Path,
    progress: Progress,
    load: Callable[[Path], Reranker],
    measure: Callable[[Reranker], float],
    accelerator: Accelerator,
    shares: tuple[float, ...] = BETWEEN,
) -> list[tuple[float, float]]:
    """Save the model with the best dev score in `folder/best`, and return the curve, the best point first.

    The curve are (share of the trained weights, dev score); ties go to the smaller share. Every process calls it.
    """
    scores = {0.0: progress.curve[0][1]}
    best = 0.0
    if progress.best_step:
        start = _weights(load(folder / START))
        model = load(folder / TRAINED)
        trained = _weights(model)
        scores[1.0] = progress.best_score
        for share in shares:
            _set_between(model, start, trained, share)
            scores[share] = measure(model)
            console.stage(folder.name, f"{share:.0%} of the way to the trained weights: dev {scores[share]:.4f}")
        best = max(scores, key=lambda share: (scores[share], -share))
        _set_between(model, start, trained, best)
    else:
        model = load(folder / START)
    curve = sorted(scores.items(), key=lambda point: (-point[1], point[0]))
    if processes.is_main():
        model.save(folder / "best")
        keep_adapter(folder / TRAINED, best, folder / "best")
    accelerator.wait_for_everyone()
    return curve


def between(start: Tensor, trained: Tensor, share: float) -> Tensor:
    """Return (1 - share) * start + share * trained, exact at both ends; of integers the trained ones."""
    return torch.lerp(start, trained, share) if trained.is_floating_point() else trained


def _weights(reranker: Reranker) -> dict[str, Tensor]:
    """Return a copy of a model's weights by name, in main memory, so that a GPU holds one model at a time."""
    return {name: weight.to("cpu", copy=True) for name, weight in reranker.model.state_dict().items()}


def _set_between(reranker: Reranker, start: Mapping[str, Tensor], trained: Mapping[str, Tensor], share: float) -> None:
    """Set a model's weights to those between two others, tensor by tensor, so that no third copy is in memory."""
    for name, weight in reranker.model.state_dict().items():
        weight.copy_(between(start[name], trained[name], share))
