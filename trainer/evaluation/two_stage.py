"""Two-stage evaluation: rerank the retrieved candidates and measure the result against all judgements.

Only documents that the first stage really returned are reranked; a positive that it missed counts as missed. Every
system is compared with the first stage, and with the base model if that is a reranker already, by bootstrap
intervals and a paired test. The ceiling is the perfect order of the retrieved candidates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trainer.data import Collection, trec_id
from trainer.evaluation.gate import BASELINES, Release
from trainer.evaluation.metrics import RankingById, best_order, per_query
from trainer.evaluation.results import Results, adjusted
from trainer.evaluation.seeds import SYSTEM, SeedResult, SeedScores, average, results_of
from trainer.evaluation.statistics import Interval, bootstrap, measured_detectable, paired_p
from trainer.evaluation.unjudged import measure_unjudged
from trainer.retriever import NOTHING, Candidates


def order(candidates: Candidates, scores: np.ndarray | None = None) -> list[list[int]]:
    """Return the document rows of each query, best first; equal scores keep the order of the first stage.

    `scores` (queries, depth) are those of the first `depth` candidates. The others follow in the first stage's order,
    so a metric deeper than `depth` is computed on the list that a user would see.
    """
    documents = candidates.documents
    if scores is not None:
        depth = scores.shape[1]
        ranked = np.take_along_axis(documents[:, :depth], np.argsort(-scores, axis=1, kind="stable"), axis=1)
        documents = np.concatenate([ranked, documents[:, depth:]], axis=1)
    return [row[row != NOTHING].tolist() for row in documents]


def ceiling(candidates: Candidates, qrels: Mapping[int, Mapping[int, int]], depth: int) -> list[list[int]]:
    """Return the best order that any reranker of the first `depth` candidates could give."""
    return [
        best_order(rows, qrels[query], depth)
        for query, rows in zip(candidates.queries.tolist(), order(candidates), strict=True)
    ]


def mean_score(
    collection: Collection, split: str, candidates: Candidates, metric: str, scores: np.ndarray | None = None
) -> float:
    """Return the mean of one metric over a split's queries, of the first stage's order or of `scores`."""
    return float(np.mean(list(query_scores(collection, split, candidates, metric, scores).values())))


def query_scores(
    collection: Collection, split: str, candidates: Candidates, metric: str, scores: np.ndarray | None = None
) -> dict[str, float]:
    """Return {query id: value} of one metric, of the first stage's order or of `scores` (queries, depth)."""
    ranking = _by_id(collection, candidates, order(candidates, scores))
    return per_query([metric], collection.named_qrels(split), ranking)[metric]


@dataclass(frozen=True)
class Measured:
    """Systems on one split: each one's ranking, and {system: {metric: {query id: value}}}."""

    depth: int
    rankings: dict[str, RankingById]
    values: dict[str, dict[str, dict[str, float]]]


def measure(
    collection: Collection,
    split: str,
    candidates: Candidates,
    scores: Mapping[str, np.ndarray],
    metrics: Sequence[str],
    default: Candidates | None = None,
) -> Measured:
    """Measure the first stage, each scored system and the ceiling, query by query; arguments as for `evaluate`."""
    orders = {"first_stage_default": order(default)} if default else {}
    orders["first_stage"] = order(candidates)
    orders |= {system: order(candidates, values) for system, values in scores.items()}
    depth = min(values.shape[1] for values in scores.values())
    orders["ceiling"] = ceiling(candidates, collection.qrels[split], depth)
    qrels = collection.named_qrels(split)
    rankings = {system: _by_id(collection, candidates, rows) for system, rows in orders.items()}
    values = {system: per_query(metrics, qrels, ranking) for system, ranking in rankings.items()}
    return Measured(depth, rankings, values)


def _averaged(measured: Measured, seeds: Sequence[SeedScores]) -> tuple[SeedResult, ...]:
    """Replace the values of the seeds' models by their mean for each query, and return each model's own means."""
    by_seed = [measured.values.pop(one.name) for one in seeds]
    if by_seed:
        best = measured.values.pop("ceiling")
        measured.values.update({SYSTEM: average(by_seed), "ceiling": best})
    return results_of(seeds, by_seed)


def summarise(
    measured: Measured,
    split: str,
    seed: int,
    release: Release | None = None,
    judged: dict[str, dict[str, Interval]] | None = None,
    seeds: tuple[SeedResult, ...] = (),
) -> Results:
    """Return means with bootstrap intervals, and the comparisons of each reranked system with the baselines."""
    values = measured.values
    reranked = [system for system in values if system not in ("first_stage_default", "first_stage", "ceiling")]
    metrics = list(values["first_stage"])
    return Results(
        split=split,
        queries=len(values["first_stage"][metrics[0]]),
        depth=measured.depth,
        **vars(release or Release()),
        systems={
            system: {metric: bootstrap(list(numbers.values()), seed) for metric, numbers in by_metric.items()}
            for system, by_metric in values.items()
        },
        comparisons=adjusted(
            _compare(values, system, before, metric, seed)
            for before in BASELINES
            if before in values
            for system in reranked
            if system != before
            for metric in metrics
        ),
        judged=judged or {},
        seeds=seeds,
    )


def evaluate(
    collection: Collection,
    split: str,
    candidates: Candidates,
    scores: Mapping[str, np.ndarray],
    metrics: Sequence[str],
    seed: int,
    folder: Path | None = None,
    *,
    default: Candidates | None = None,
    release: Release | None = None,
    seeds: Sequence[SeedScores] = (),
) -> Results:
    """Measure the first stage, each scored system and the ceiling; with a folder, write TREC runs and results.

    `scores[system]` (queries, depth) are those of the first `depth` candidates, the same depth for all systems.
    `default` are the candidates of the first stage without tuning, for the system `first_stage_default`. `release`,
    the verdict on the exported model from dev, is only recorded here. `seeds` are the models of several trainings;
    the system `seeds` has each query's mean over them, and each model a TREC run `seed-SEED.trec`.
    """
    with_seeds = {**scores, **{one.name: one.test for one in seeds}}
    measured = measure(collection, split, candidates, with_seeds, metrics, default)
    by_seed = _averaged(measured, seeds)
    rankings = {system: ranking for system, ranking in measured.rankings.items() if system != "ceiling"}
    in_table = {system: ranking for system, ranking in rankings.items() if system in measured.values}
    judged = measure_unjudged(metrics[0], collection.named_qrels(split), in_table, collection.relevant_from, seed)
    results = summarise(measured, split, seed, release, judged, by_seed)
    if folder is not None:
        for system, ranking in rankings.items():
            _write_trec(folder / f"{system}.trec", ranking, system)
        results.save(folder)
    return results


def _compare(
    values: Mapping[str, Mapping[str, Mapping[str, float]]], system: str, baseline: str, metric: str, seed: int
) -> dict[str, Any]:
    """Return a system's mean difference to a baseline, its p-value, and the numbers of queries won, lost and unchanged.

    `detectable` is the smallest difference between these two systems that so many queries detect.
    """
    ours, theirs = (list(values[name][metric].values()) for name in (system, baseline))
    differences = np.subtract(ours, theirs)
    return {
        "system": system,
        "against": baseline,
        "metric": metric,
        "difference": float(np.mean(ours) - np.mean(theirs)),
        "p": paired_p(ours, theirs, seed),
        "wins": int((differences > 0).sum()),
        "losses": int((differences < 0).sum()),
        "unchanged": int((differences == 0).sum()),
        "detectable": measured_detectable(differences),
    }


def _by_id(collection: Collection, candidates: Candidates, orders: Sequence[Sequence[int]]) -> RankingById:
    """Return the orders with ids instead of query and document rows."""
    return {
        collection.query_ids[query]: [collection.document_ids[row] for row in rows]
        for query, rows in zip(candidates.queries.tolist(), orders, strict=True)
    }


def _write_trec(path: Path, ranking: RankingById, tag: str) -> None:
    """Write a TREC run with strictly decreasing scores, so that every evaluator reads the same order."""
    lines = [
        f"{trec_id(query)} Q0 {trec_id(document)} {rank} {len(documents) - rank + 1} {tag}\n"
        for query, documents in ranking.items()
        for rank, document in enumerate(documents, start=1)
    ]
    path.write_text("".join(lines), encoding="utf-8")
