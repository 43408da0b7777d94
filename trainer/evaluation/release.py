"""What dev shows of the model that leaves: measured, judged by the gate, and kept with what the verdict rests on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from trainer.data import Collection
from trainer.evaluation.fusion import Weights, choose_weight
from trainer.evaluation.gate import NAMES, ONLY_FUSED, Release, Way, judge, verdict_of
from trainer.evaluation.two_stage import query_scores
from trainer.model import Fusion
from trainer.model.fusion import Kind
from trainer.retriever import Candidates
from trainer.runtime.run_folder import write_json

CHOSEN_ON_DEV = ("base", "fitted", "tuned")  # among these, and what lies between, dev chose what leaves
FILE = "dev.json"


def judge_release(
    collection: Collection,
    candidates: Candidates,
    metric: str,
    scores: Mapping[str, np.ndarray],
    between: Sequence[Sequence[float]],
    weights: Mapping[Kind, Weights],
    seed: int,
    folder: Path,
) -> tuple[Release, dict[str, float]]:
    """Return the verdict on the last system of `scores` (queries, depth of dev), and each system's mean on dev.

    `between` holds each dev query's value under the other models that dev chose from. Writes fusion.json, and dev.json
    with each query's values, from which `scripts/gate_table.py` draws.
    """
    values = {
        name: np.array(list(query_scores(collection, "dev", candidates, metric, one).values()))
        for name, one in [("first_stage", None), *scores.items()]
    }
    shipped = list(scores)[-1]
    names, others = [name for name in CHOSEN_ON_DEV if name in scores], between
    if shipped not in CHOSEN_ON_DEV:
        names, others = [shipped], []
    alone = np.array([*(values[name] for name in names), *others])
    fused = weights["scores"]
    ways = {"alone": Way(alone, names.index(shipped)), "fused": Way(fused.values, fused.place, choose_weight)}
    opponents = {name: values[name] for name in NAMES if name in values}
    findings = {name: judge(way, opponents, seed) for name, way in ways.items()}
    verdict = verdict_of(findings["alone"], findings["fused"])
    Fusion(fused.chosen, weights["order"].chosen, alone=verdict != ONLY_FUSED).save(folder)
    _write(ways, opponents, metric, folder)
    means = {name: float(one.mean()) for name, one in [*values.items(), ("fused", fused.values[fused.place])]}
    return Release(verdict=verdict, shipped=shipped, ways=findings, first_stage_weight=fused.chosen), means


def _write(ways: Mapping[str, Way], opponents: Mapping[str, np.ndarray], metric: str, folder: Path) -> None:
    """Keep each dev query's values: of the opponents, and of all that was chosen from in each way of use."""
    content = {
        "metric": metric,
        "opponents": {name: values.tolist() for name, values in opponents.items()},
        "ways": {name: {"chosen": way.chosen, "values": way.values.tolist()} for name, way in ways.items()},
    }
    write_json(folder / FILE, content)
