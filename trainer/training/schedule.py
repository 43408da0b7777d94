"""The schedule of a training: the groups of each step, the evaluations, and the learning rate."""

from __future__ import annotations

import numpy as np

from trainer.recipe import Train

BETWEEN = (0.25, 0.5, 0.75)  # shares of the trained weights that are evaluated at the end, besides 0 and 1


def steps(num_groups: int, section: Train, seed: int) -> list[list[int]]:
    """Return the positions of the groups of every step; each epoch is shuffled anew and may end with a short step."""
    plan = []
    for epoch in range(section.epochs):
        order = np.random.default_rng([seed, epoch]).permutation(num_groups).tolist()
        plan += [
            order[start : start + section.queries_per_step] for start in range(0, num_groups, section.queries_per_step)
        ]
    return plan


def evaluation_steps(total: int, section: Train) -> set[int]:
    """Return the steps after which dev is evaluated, evenly spaced and including the last one."""
    count = section.epochs * section.evaluations_per_epoch
    return {round(total * part / count) for part in range(1, count + 1)}


def rate_factor(step: int, total: int, warmup_share: float) -> float:
    """Return the factor of the peak rate at a step (from 0): linear warm-up, then linear decay to zero."""
    warmup = max(1, round(total * warmup_share))
    return (step + 1) / warmup if step < warmup else (total - step) / max(1, total - warmup)
