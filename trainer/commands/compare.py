"""Compare existing rerankers in quality and speed on the dev and test queries of a recipe, without training."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trainer.commands.apps import despite_quiet
from trainer.context import Run
from trainer.data import EarlierSplits
from trainer.data.records import normalised
from trainer.errors import RecipeError, RunError, TrainerError, one_line
from trainer.evaluation.fusion import fuse_with_first_stage
from trainer.evaluation.statistics import Interval, bootstrap, holm, paired_p
from trainer.evaluation.two_stage import ceiling, query_scores
from trainer.model import Reranker, TokenizedCollection, rerank
from trainer.pipeline import open_run, run
from trainer.recipe import Recipe
from trainer.reporting.latency import measure_latency
from trainer.runtime import console
from trainer.runtime.run_folder import write_json

if TYPE_CHECKING:
    from trainer.model import Reranker

FILE = "compare.json"
FUSED = ", fused"


@dataclass
class Compared:
    """The figures of one system, or the error because of which it has none; `dev` and `test` are {metric: interval}.

    `difference`, `p`, `wins` and `losses` compare it with the first stage on the test queries, in the first metric; `p`
    is corrected for the number of systems (Holm). The milliseconds are those of one query.
    """

    name: str
    dev: dict[str, Interval] = field(default_factory=dict)
    test: dict[str, Interval] = field(default_factory=dict)
    difference: Interval | None = None
    p: float | None = None
    wins: int | None = None
    losses: int | None = None
    parameters: int | None = None
    pairs_per_second: float | None = None
    p50_ms: float | None = None
    p95_ms: float | None = None
    fault: str | None = None


def compare(recipe: Recipe, runs: Path, references: Sequence[str], trust_remote_code: bool = False) -> list[Compared]:
    """Measure rerankers on a recipe's candidates, print the table and write it to the run folder.

    The stages data and retrieve run first unless they are finished. A model with weights for the first stage's scores
    has a second row with them. A model that cannot be loaded, or whose scores are not numbers, is left out of the
    table; raises RunError if no model is left.
    """
    if twice := {reference for reference in references if references.count(reference) > 1}:
        raise RecipeError(f"compare: named twice: {', '.join(sorted(twice))}; name each model once")
    if not references:
        raise RecipeError("compare: no model is named; name Hub ids, model folders or run folders after the recipe")
    run(recipe, runs, until="retrieve")
    opened = open_run(recipe, runs)
    with opened.locked():
        measured = [row for reference in references for row in _measured(opened, reference, trust_remote_code)]
        _correct(measured)
        rows = [_first_stage(opened), *measured, _ceiling(opened)]
        opened.on_main(lambda: write_json(opened.folder / FILE, [asdict(row) for row in rows]))
    with despite_quiet():
        _show(opened, rows)
    faults = [f"{row.name}: {row.fault}" for row in rows if row.fault]
    if len(faults) == len(references):
        raise RunError(faults)
    return rows


def _measured(run: Run, reference: str, trust_remote_code: bool) -> list[Compared]:
    """Return the row of a model and that of its fusion, or one row with the error if it cannot be evaluated."""
    row = Compared(reference)
    try:
        reranker = _load(run, reference, trust_remote_code)
        row.parameters = sum(weight.numel() for weight in reranker.model.parameters())
        scores = {split: _scores(run, reranker, split, row) for split in ("dev", "test")}
        _time(run, reranker, row)
    except (TrainerError, OSError, RuntimeError, ValueError) as error:  # a model's own code may raise anything
        row.fault = "; ".join(error.faults) if isinstance(error, TrainerError) else one_line(error)
        console.warn("compare", f"{reference}: {row.fault}")
        return [row]
    rows = [row]
    _fill(run, row, scores)
    if reranker.fusion is not None:
        rows.append(replace(row, name=f"{reference}{FUSED}", dev={}, test={}))
        weight = reranker.fusion.scores
        fused = {
            split: fuse_with_first_stage(run.candidates(split), values, weight) for split, values in scores.items()
        }
        _fill(run, rows[1], fused)
    for one in rows:
        console.stage("compare", f"{one.name}: test {run.metric} {one.test[run.metric].mean:.4f}")
    return rows


def _load(run: Run, reference: str, trust_remote_code: bool) -> Reranker:
    """Return a model with the recipe's maximum length; warn if it was trained on test queries of the recipe."""
    options: dict[str, Any] = {"head": "trained", "trust_remote_code": trust_remote_code}
    reranker = Reranker.load(reference, **options)
    if not reranker.pairs.is_prompt:
        reranker.passages = run.recipe.passages or reranker.passages
    length = run.recipe.reranker.max_length
    if length is not None:
        reranker.read_at_most(min(length, reranker.max_length))
    queries = run.collection.answerable("test")
    if earlier := EarlierSplits.of(reference):
        known = [earlier.split_of(normalised(text)) for text in run.collection.query_texts(queries)]
        if trained := known.count("train"):
            text = f"{reference}: was trained on {trained} of these {len(queries)} test queries, so its row is too good"
            console.warn("compare", text)
    return reranker


def _time(run: Run, reranker: Reranker, row: Compared) -> None:
    """Set the milliseconds of a query in `row`; a slow model may not be timed at the full depth."""
    candidates = run.reranked("test")
    timed = measure_latency(reranker, run.collection, candidates)["by_depth"] if run.is_main else []
    for one in timed:
        if one["depth"] == candidates.documents.shape[1]:
            row.p50_ms, row.p95_ms = one["p50_ms"], one["p95_ms"]


def _correct(rows: Sequence[Compared]) -> None:
    """Correct the p-values of all systems for their number."""
    tested = [(row, row.p) for row in rows if row.p is not None]
    for (row, _), corrected in zip(tested, holm([p for _, p in tested]), strict=True):
        row.p = corrected


def _scores(run: Run, reranker: Reranker, split: str, row: Compared) -> np.ndarray:
    """Return a model's scores of a split's candidates (queries, depth), and set its speed in `row`."""
    tokenized = TokenizedCollection(run.collection, reranker.pairs)
    started = time.perf_counter()
    scores = rerank(reranker, tokenized, run.reranked(split), run.accelerator, note=split)
    row.pairs_per_second = round(float(np.isfinite(scores).sum() / max(time.perf_counter() - started, 1e-9)), 1)
    return scores


def _fill(run: Run, row: Compared, scores: Mapping[str, np.ndarray | None]) -> None:
    """Set a model's metrics and its difference to the first stage in `row`; without scores, the first stage's own."""
    seed, metric = run.recipe.seed, run.metric
    ours: list[float] = []
    for split, values in scores.items():
        candidates = run.candidates(split)
        for name in run.recipe.evaluate.metrics:
            by_query = list(query_scores(run.collection, split, candidates, name, values).values())
            getattr(row, split)[name] = bootstrap(by_query, seed)
            if (split, name) == ("test", metric):
                ours = by_query
    if scores["test"] is not None:
        first = list(query_scores(run.collection, "test", run.candidates("test"), metric).values())
        changes = np.subtract(ours, first)
        row.difference = bootstrap(changes.tolist(), seed)
        row.p = paired_p(ours, first, seed)
        row.wins, row.losses = int((changes > 0).sum()), int((changes < 0).sum())


def _first_stage(run: Run) -> Compared:
    row = Compared("first stage")
    _fill(run, row, {"dev": None, "test": None})
    return row


def _ceiling(run: Run) -> Compared:
    """Return the row of the best possible order of the reranked candidates."""
    row, depth = Compared("ceiling"), run.recipe.rerank_depth
    best: dict[str, np.ndarray | None] = {}
    for split in ("dev", "test"):
        candidates = run.candidates(split)
        orders = ceiling(candidates, run.collection.qrels[split], depth)
        ranks = [{document: rank for rank, document in enumerate(rows)} for rows in orders]
        documents = candidates.documents[:, :depth].tolist()
        best[split] = np.array(
            [[-found.get(one, np.inf) for one in row] for row, found in zip(documents, ranks, strict=True)]
        )
    _fill(run, row, best)
    row.difference = row.p = row.wins = row.losses = None
    return row


def _show(run: Run, rows: Sequence[Compared]) -> None:
    """Print quality in the first metric on dev and test, then the cost; all metrics are in the file."""
    queries, depth = len(run.collection.answerable("test")), run.recipe.rerank_depth
    title = f"test: {queries} queries, the best {depth} candidates of each reranked"
    names = _short([row.name for row in rows])
    measured = [(name, row) for name, row in zip(names, rows, strict=True) if not row.fault]
    quality = ["model", "dev", run.metric, "gain, 95 %", "p", "+/-"]
    console.table(title, quality, [[name, *_quality(row, run.metric)] for name, row in measured])
    costs = [[name, *_cost(row)] for name, row in measured if row.parameters and FUSED not in name]
    if costs:
        console.table("", ["model", "size", "ms per query", "95 %", "pairs/s"], costs)
    console.stage("compare", f"all figures: {run.folder / FILE}")


def _short(names: Sequence[str]) -> list[str]:
    """Return the last part of each path or id, or the full one if two have the same last part."""
    last = [_last(name) for name in names]
    return [part if last.count(part) == 1 else name for part, name in zip(last, names, strict=True)]


def _last(name: str) -> str:
    """Return the last part of a path or id; for the exported model of a run the name of the run."""
    path = name.removesuffix(FUSED).rstrip("/").removesuffix("/export/model")
    return path.rpartition("/")[2] + FUSED * name.endswith(FUSED)


def _quality(row: Compared, metric: str) -> list[str]:
    gain = row.difference
    return [
        f"{row.dev[metric].mean:.3f}",
        f"{row.test[metric].mean:.3f}",
        f"{gain.mean:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]" if gain else "",
        f"{row.p:.4f}" if row.p is not None else "",
        f"{row.wins}/{row.losses}" if row.wins is not None else "",
    ]


def _cost(row: Compared) -> list[str]:
    return [
        f"{row.parameters / 1e6:.1f}M" if row.parameters else "",
        f"{row.p50_ms:.1f}" if row.p50_ms is not None else "",
        f"{row.p95_ms:.1f}" if row.p95_ms is not None else "",
        f"{row.pairs_per_second:.0f}" if row.pairs_per_second else "",
    ]
