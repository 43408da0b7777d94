"""Interpolation between the model before training and the best checkpoint; dev chooses how far to go.

Between the two lie models that keep more of what the base knew (Wortsman et al., CVPR 2022).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor

from trainer.model import Reranker
from trainer.runtime import console, processes
from trainer.training.checkpoints import START, TRAINED, Progress

BETWEEN = (0.25, 0.5, 0.75)  # shares of the trained weights that are tried besides none and all


def choose(
    folder: Path,
    progress: Progress,
    load: Callable[[Path], Reranker],
    measure: Callable[[Reranker], float],
    accelerator: Accelerator,
    shares: tuple[float, ...] = BETWEEN,
) -> list[tuple[float, float]]:
    """Write the model of the best dev score to `folder/best`; of equal ones the one closest to the start.

    Returns the curve of (share of the trained weights, dev score), the best point first. Every process calls it.
    """
    scores = {0.0: progress.curve[0][1]}
    start = model = load(folder / START)
    if progress.best_step:
        model = load(folder / TRAINED)
        begin, end = (
            {name: weight.clone() for name, weight in one.model.state_dict().items()} for one in (start, model)
        )
        scores[1.0] = progress.best_score
        for share in shares:
            model.model.load_state_dict(between(begin, end, share))
            scores[share] = measure(model)
            console.stage(folder.name, f"{share:.0%} of the way to the trained weights: dev {scores[share]:.4f}")
        best = max(scores, key=lambda share: (scores[share], -share))
        model.model.load_state_dict(between(begin, end, best))
    curve = sorted(scores.items(), key=lambda point: (-point[1], point[0]))
    if processes.is_main():
        model.save(folder / "best")
    accelerator.wait_for_everyone()
    return curve


def between(start: Mapping[str, Tensor], trained: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Return `share` of the trained weights and the rest of those at the start; exact at both ends.

    Both have the same names and shapes. What is no floating-point number is taken from the trained model.
    """
    return {
        name: torch.lerp(start[name], weight, share) if weight.is_floating_point() else weight
        for name, weight in trained.items()
    }
