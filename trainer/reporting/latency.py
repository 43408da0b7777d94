"""Measure the milliseconds that reranking one query takes on this machine, by the number of candidates."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from trainer.data import Collection
from trainer.forecast.here import processor
from trainer.reporting.depths import depths_to

if TYPE_CHECKING:
    from trainer.model import Reranker
    from trainer.retriever import Candidates

SECONDS = 8.0  # time limit, after which no further query is timed
QUERIES = 24  # most queries timed


def measure_latency(
    reranker: Reranker,
    collection: Collection,
    candidates: Candidates,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    """Time queries of `candidates` one after the other at each depth of the curve, tokenisation included.

    Return p50 and p95 in milliseconds and pairs per second by depth, a description of the machine, and the number of
    documents of the corpus. A slow model is timed on fewer queries, and perhaps not at all depths.
    """
    depths = depths_to(candidates.documents.shape[1])
    sample = np.linspace(0, len(candidates.queries) - 1, min(len(candidates.queries), QUERIES)).astype(int).tolist()
    taken: dict[int, list[tuple[int, float]]] = {depth: [] for depth in depths}
    begun = clock()
    for number, index in enumerate([sample[0], *sample]):
        rows = candidates.found(index, max(depths))
        query = collection.query_texts([int(candidates.queries[index])])[0]
        passages = collection.passages(rows) if rows else []
        for depth in depths:
            if clock() - begun > SECONDS:
                break
            started = clock()
            reranker.score([(query, passage) for passage in passages[:depth]])
            if number:  # the first query only warms up
                taken[depth].append((min(depth, len(passages)), clock() - started))
    by_depth = [_at(depth, took) for depth, took in taken.items() if took]
    return {"machine": describe_machine(reranker), "by_depth": by_depth, "corpus": len(collection.documents)}


def seconds_of_latency(depth: int, pair: float) -> float:
    """Return the seconds that `measure_latency` takes at a depth, from the seconds of a pair."""
    return min(SECONDS, (QUERIES + 1) * sum(depths_to(depth)) * pair)


def _at(depth: int, took: Sequence[tuple[int, float]]) -> dict[str, Any]:
    """Return the figures of one depth from (pairs, seconds) of each query."""
    pairs, seconds = np.array(took).T
    p50, p95 = np.quantile(seconds * 1000, [0.5, 0.95])
    speed = pairs.sum() / max(float(seconds.sum()), 1e-9)
    return {
        "depth": depth,
        "queries": len(took),
        "p50_ms": round(float(p50), 2),
        "p95_ms": round(float(p95), 2),
        "pairs_per_second": round(float(speed), 1),
    }


def describe_machine(reranker: Reranker) -> str:
    """Return device, precision and the longest input as text."""
    import torch

    if reranker.device.type == "cuda":
        device = torch.cuda.get_device_name(reranker.device)
    else:
        device = f"{processor()}, {torch.get_num_threads()} of {os.cpu_count()} cores"
    return f"{device}, {reranker.precision}, pairs of at most {reranker.max_length} tokens"
