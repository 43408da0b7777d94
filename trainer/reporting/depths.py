"""Quality by the number of reranked candidates, computed from one scoring of all of them: `evaluate/depths.json`.

The order that a model gives to the first k candidates is the order of the full reranked list without the others, so
the TREC runs of one evaluation suffice. That does not hold for the fusion with the first stage, whose scores are
standardised over the reranked candidates; it has no curve.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trainer.data import Collection
from trainer.evaluation.metrics import best_order
from trainer.evaluation.statistics import bootstrap
from trainer.reporting.queries import Order, main_metric, read_orders, score_orders, shipped_system
from trainer.runtime.run_folder import read_json, write_json

FILE = "depths.json"
STEPS = (5, 10, 20, 50, 100, 200, 500, 1000)
WITHOUT_CURVE = ("fused", "other_libraries", "first_stage", "first_stage_default", "ceiling")


def depths_to(deepest: int) -> list[int]:
    """Return the depths of the curve: those of STEPS below the deepest one, and the deepest one."""
    return [*(step for step in STEPS if step < deepest), deepest]


def rerank_to(first_stage: Sequence[int], reranked: Sequence[int], depth: int) -> list[int]:
    """Return the order after reranking only the first `depth` candidates, from the order of all reranked ones."""
    top = set(first_stage[:depth])
    return [row for row in reranked if row in top] + list(first_stage[depth:])


def write_depths(collection: Collection, folder: Path, seed: int) -> None:
    """Write `depths.json` to the folder of an evaluation, from its TREC runs and results.json."""
    results = read_json(folder / "results.json")
    write_json(folder / FILE, depth_curve(collection, read_orders(collection, folder, results), results, seed))


def depth_curve(
    collection: Collection, orders: Mapping[str, Order], results: Mapping[str, Any], seed: int
) -> dict[str, Any]:
    """Return the main metric's mean by system and depth, the exported system's intervals, and a recommended depth.

    Recommended is the smallest depth whose paired difference to the best one has a 95 % interval that includes 0.
    """
    split, metric, shipped = results["split"], main_metric(results), shipped_system(results)
    depths = depths_to(results["depth"])
    first, grades = orders["first_stage"], collection.qrels[split]
    values: dict[str, list[np.ndarray]] = {}
    for system in (system for system in orders if system not in WITHOUT_CURVE):
        values[system] = [
            _scored(collection, split, metric, {q: rerank_to(first[q], rows, k) for q, rows in orders[system].items()})
            for k in depths
        ]
    ceilings = [{q: best_order(rows, grades[q], k) for q, rows in first.items()} for k in depths]
    values["ceiling"] = [_scored(collection, split, metric, order) for order in ceilings]
    return {
        "metric": metric,
        "system": shipped,
        "depths": depths,
        "first_stage": float(_scored(collection, split, metric, first).mean()),
        "systems": {system: [float(v.mean()) for v in by_depth] for system, by_depth in values.items()},
        "intervals": [bootstrap(v.tolist(), seed)[1:] for v in values[shipped]],
        "recommended": recommended(depths, values[shipped], seed),
    }


def recommended(depths: Sequence[int], values: Sequence[np.ndarray], seed: int) -> int:
    """Return the smallest depth not significantly worse than the best one, given per-query values of each depth."""
    best = max(values, key=lambda v: float(v.mean()))
    return next(
        depth
        for depth, v in zip(depths, values, strict=True)
        if v is best or bootstrap((v - best).tolist(), seed).high >= 0
    )


def corpus_cost(latency: Mapping[str, Any]) -> tuple[int, float, float] | None:
    """Return the cost of scoring the corpus for one query: (documents, seconds, times that of the deepest depth).

    It follows from the pairs per second at the deepest depth; None if no depth was timed, or the size is unknown.
    """
    if not latency["by_depth"] or "corpus" not in latency:
        return None
    deepest = latency["by_depth"][-1]
    speed = max(deepest["pairs_per_second"], 1e-9)
    return latency["corpus"], latency["corpus"] / speed, latency["corpus"] / deepest["depth"]


def _scored(collection: Collection, split: str, metric: str, order: Order) -> np.ndarray:
    return np.array(list(score_orders(collection, split, order, metric).values()))
