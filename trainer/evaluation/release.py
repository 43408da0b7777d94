"""Apply the release gate to a run: measure all systems on dev, and write the verdict and the values it is based on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from trainer.data import Collection
from trainer.evaluation.fusion import Weights, choose_weight, fused_choice, try_weights
from trainer.evaluation.gate import BASELINES, ONLY_FUSED, DevChoice, Release, verdict_of, weakest_finding
from trainer.evaluation.two_stage import query_scores
from trainer.model import Fusion
from trainer.model.fusion import Kind
from trainer.retriever import Candidates
from trainer.runtime.run_folder import write_json

CHOSEN_ON_DEV = ("base", "fitted", "tuned")  # dev chose the exported model among these and their interpolations
FILE = "dev.json"


def decide_release(
    collection: Collection,
    candidates: Candidates,
    metric: str,
    scores: Mapping[str, np.ndarray],
    between: Sequence[Sequence[float]],
    weights: Mapping[Kind, Weights],
    seed: int,
    folder: Path,
    *,
    other_seeds: Sequence[np.ndarray] = (),
    trained: bool = True,
) -> tuple[Release, dict[str, float]]:
    """Return the verdict on the last system of `scores` (queries, depth of dev), and each system's mean on dev.

    `between` holds each dev query's value under the interpolations that dev chose from, and `other_seeds` the scores
    (queries, depth) of the best models of the trainings with other seeds. If nothing was `trained`, a base model that
    ranks already is compared with the first stage alone, and not with itself. Write fusion.json, and dev.json with each
    query's values, which `scripts/gate_table.py` resamples.
    """

    def measure(one: np.ndarray | None) -> np.ndarray:
        return np.array(list(query_scores(collection, "dev", candidates, metric, one).values()))

    values = {name: measure(one) for name, one in [("first_stage", None), *scores.items()]}
    shipped = list(scores)[-1]
    names, others = _choices(scores), between
    if shipped not in CHOSEN_ON_DEV:  # a distilled model, which is trained once
        names, others, other_seeds = [shipped], [], ()
    of_seeds = [measure(one) for one in other_seeds]
    alone = np.array([*(values[name] for name in names), *of_seeds, *others])
    fused = weights["scores"]
    choices = {
        "alone": DevChoice(alone, names.index(shipped)),
        "fused": DevChoice(fused.values, fused.chosen_index, choose_weight),
    }
    baselines = {name: values[name] for name in BASELINES if name in values and (trained or name != shipped)}
    _write(choices, baselines, metric, folder)
    if of_seeds:
        fitted = fused.tried[0]
        tried = [try_weights(collection, candidates, metric, one, fitted, "scores") for one in other_seeds]
        choices["fused"] = fused_choice(np.array([values[shipped], *of_seeds]), [fused, *tried])
    findings = {mode: weakest_finding(choice, baselines, seed) for mode, choice in choices.items()}
    verdict = verdict_of(findings["alone"], findings["fused"])
    Fusion(fused.chosen, weights["order"].chosen, alone=verdict != ONLY_FUSED).save(folder)
    means = {name: float(one.mean()) for name, one in [*values.items(), ("fused", fused.values[fused.chosen_index])]}
    weight = fused.chosen
    release = Release(verdict=verdict, shipped=shipped, findings=findings, first_stage_weight=weight, trained=trained)
    return release, means


def _choices(systems: Mapping[str, np.ndarray]) -> list[str]:
    """Return the systems that dev chose from: not the base as it was, if lexical signals were added to it before."""
    names = [name for name in CHOSEN_ON_DEV if name in systems]
    return [name for name in names if name != "base" or "fitted" not in names]


def _write(choices: Mapping[str, DevChoice], baselines: Mapping[str, np.ndarray], metric: str, folder: Path) -> None:
    """Write dev.json: each dev query's value under the baselines, and under the alternatives of each mode.

    With several seeds the fused mode has only the weights of the exported model.
    """
    content = {
        "metric": metric,
        "opponents": {name: values.tolist() for name, values in baselines.items()},
        "ways": {mode: {"chosen": one.chosen, "values": one.values.tolist()} for mode, one in choices.items()},
    }
    write_json(folder / FILE, content)
