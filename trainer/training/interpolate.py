"""Weight interpolation between the model before training and the best one after it, chosen on dev.

Interpolated models retain more of the base's abilities (WiSE-FT: Wortsman et al., CVPR 2022).
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
    start = model = load(folder / START)
    best = 0.0
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
        keep_adapter(folder / TRAINED, best, folder / "best")
    accelerator.wait_for_everyone()
    return curve


def between(start: Mapping[str, Tensor], trained: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Return (1 - share) * start + share * trained for each weight; exact at both ends.

    Both have the same names and shapes. Integer tensors are taken from the trained model.
    """
    return {
        name: torch.lerp(start[name], weight, share) if weight.is_floating_point() else weight
        for name, weight in trained.items()
    }
