"""Which groups come in which step, when dev is measured, and at what share of the peak rate a step runs."""

from __future__ import annotations

import numpy as np

from trainer.recipe import Train


def steps(num_groups: int, section: Train, seed: int) -> list[list[int]]:
    """Positions of the groups of every step of the run: each epoch shuffled anew, a short last step kept."""
    plan = []
    for epoch in range(section.epochs):
        order = np.random.default_rng([seed, epoch]).permutation(num_groups).tolist()
        plan += [
            order[start : start + section.queries_per_step] for start in range(0, num_groups, section.queries_per_step)
        ]
    return plan


def evaluation_steps(total: int, section: Train) -> set[int]:
    """Steps after which dev is measured, spread evenly, the last one included."""
    count = section.epochs * section.evaluations_per_epoch
    return {round(total * part / count) for part in range(1, count + 1)}


def rate_factor(step: int, total: int, warmup_share: float) -> float:
    """Share of the peak rate at a step (from 0): linear up over the warm-up, then linear down to zero."""
    warmup = max(1, round(total * warmup_share))
    return (step + 1) / warmup if step < warmup else (total - step) / max(1, total - warmup)
