"""The release gate: whether a model may leave, judged on dev in float32.

A model leaves where it is better by itself than what the user had: the first stage, and the base where that ranks
already. Its fusion with the first stage does not count, since most servers rank by the model alone.
"""

from __future__ import annotations

from collections.abc import Mapping

NAMES = {"first_stage": "the first stage", "base": "the base model"}


def fault_of(dev: Mapping[str, float], system: str) -> str | None:
    """Return why `system` must not leave, given the dev score of each system; None where it may.

    `base` is among the systems only where the base model ranked before training.
    """
    before = max((name for name in NAMES if name in dev), key=lambda name: dev[name])
    if dev[system] > dev[before]:
        return None
    fault = f"{dev[system]:.4f} is no better than {NAMES[before]}'s {dev[before]:.4f}"
    fused = dev.get("fused", 0.0)
    if system == "tuned" and fused > dev[before]:
        fault += f" (only with the first stage's score beside it: {fused:.4f})"
    return fault
