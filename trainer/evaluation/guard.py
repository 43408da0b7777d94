"""The verdict on guard sets: whether the exported model lost more than allowed on other collections.

The loss is the mean over a set's queries of the value before training minus that of the exported model, both alone,
on the same candidates. The model before training is the base model, or the fitted head if the base has none of its own:
then a loss by the fit itself does not show (one by lexical signals beside the base's logit does), and the first stage's
value is given for comparison. No choice was made on a guard set, so the bootstrap has no choice to repeat.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from trainer.evaluation.gate import KEPT, LOST, UNCLEAR, WORSE, DevChoice, GuardFinding, Release, compare, resamples
from trainer.runtime.run_folder import read_json

GUARD_VALUES = "values.json"  # in the folder of each set


def judge(
    name: str, first_stage: Sequence[float], before: Sequence[float], after: Sequence[float], allowed: float, seed: int
) -> GuardFinding:
    """Return the finding on a set from each query's values."""
    old, new = np.array(before), np.array(after)
    loss = compare(DevChoice(old[None]), "after", new, resamples(len(new), seed))
    gain = compare(DevChoice(new[None]), "before", old, resamples(len(new), seed))
    low, high = loss.low, -gain.low
    judged = LOST if low > allowed else KEPT if high <= allowed else UNCLEAR
    return GuardFinding(
        name,
        len(new),
        float(np.mean(first_stage)),
        float(old.mean()),
        float(new.mean()),
        loss.difference,
        low,
        high,
        allowed,
        judged,
    )


def judge_guard_sets(folder: Path, allowed: float, seed: int) -> list[GuardFinding]:
    """Return the finding on each set that the stage guard measured, in the order of the names."""
    paths = sorted(folder.glob(f"*/{GUARD_VALUES}"), key=lambda path: int(path.parent.name))
    measured = [read_json(path) for path in paths]
    return [judge(one["set"], **one["values"], allowed=allowed, seed=seed) for one in measured]


def with_guard_sets(release: Release, findings: Sequence[GuardFinding]) -> Release:
    """Return the verdict with the findings on guard sets; a model that clearly lost more than allowed is worse."""
    lost = any(finding.judged == LOST for finding in findings)
    return replace(release, verdict=WORSE if lost else release.verdict, guard=tuple(findings))
