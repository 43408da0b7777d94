"""Compare existing rerankers in quality and speed on the dev and test queries of a recipe, without training."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trainer.commands.apps import despite_quiet
from trainer.context import Run
from trainer.errors import RecipeError, RunError, TrainerError, one_line
from trainer.evaluation.statistics import Interval, bootstrap, paired_p
from trainer.evaluation.two_stage import ceiling, query_scores
from trainer.model import Reranker, TokenizedCollection, rerank
from trainer.pipeline import open_run, run
from trainer.recipe import Recipe
from trainer.runtime import console
from trainer.runtime.run_folder import write_json

if TYPE_CHECKING:
    from trainer.model import Reranker

FILE = "compare.json"


@dataclass
class Compared:
    """The figures of one model, or the error because of which it has none; `dev` and `test` are {metric: interval}."""

    name: str
    dev: dict[str, Interval] = field(default_factory=dict)
    test: dict[str, Interval] = field(default_factory=dict)
    difference: Interval | None = None  # to the first stage, of the first metric on test
    p: float | None = None
    parameters: int | None = None
    pairs_per_second: float | None = None
    fault: str | None = None


def compare(recipe: Recipe, runs: Path, references: Sequence[str], trust_remote_code: bool = False) -> list[Compared]:
    """Measure rerankers on a recipe's candidates, print the table and write it to the run folder.

    The stages data and retrieve run first unless they are finished. A model that cannot be loaded, or whose scores are
    not numbers, is left out of the table; raises RunError if no model is left.
    """
    if twice := {reference for reference in references if references.count(reference) > 1}:
        raise RecipeError(f"compare: named twice: {', '.join(sorted(twice))}; name each model once")
    run(recipe, runs, until="retrieve")
    opened = open_run(recipe, runs)
    with opened.locked():
        rows = [_first_stage(opened)]
        rows += [_measured(opened, reference, trust_remote_code) for reference in references]
        rows.append(_ceiling(opened))
        write_json(opened.folder / FILE, [asdict(row) for row in rows])
    with despite_quiet():
        _show(opened, rows)
    faults = [f"{row.name}: {row.fault}" for row in rows if row.fault]
    if len(faults) == len(references):
        raise RunError(faults)
    return rows


def _measured(run: Run, reference: str, trust_remote_code: bool) -> Compared:
    """Return the row of a model, with the error if it cannot be evaluated."""
    row = Compared(reference)
    length = run.recipe.reranker.max_length
    try:
        options: dict[str, Any] = {"head": "trained", "trust_remote_code": trust_remote_code}
        reranker = Reranker.load(reference, **options)
        reranker.passages = run.recipe.passages or reranker.passages
        if length is not None:
            reranker.read_at_most(min(length, reranker.max_length))
        row.parameters = sum(weight.numel() for weight in reranker.model.parameters())
        scores = {split: _scores(run, reranker, split, row) for split in ("dev", "test")}
    except (TrainerError, OSError, RuntimeError, ValueError) as error:  # a model's own code may raise anything
        row.fault = "; ".join(error.faults) if isinstance(error, TrainerError) else one_line(error)
        console.warn("compare", f"{reference}: {row.fault}")
        return row
    _fill(run, row, scores)
    console.stage("compare", f"{reference}: test {run.metric} {row.test[run.metric].mean:.4f}")
    return row


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
        row.difference = bootstrap(np.subtract(ours, first).tolist(), seed)
        row.p = paired_p(ours, first, seed)


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
    row.difference = row.p = None
    return row


def _show(run: Run, rows: Sequence[Compared]) -> None:
    """Print the first metric on dev and test, the gain and the speed; all metrics are in the file."""
    columns = ["model", "dev", run.metric, "gain, 95 %", "pairs/s"]
    queries, depth = len(run.collection.answerable("test")), run.recipe.rerank_depth
    title = f"test: {queries} queries, the best {depth} candidates of each reranked"
    names = _short([row.name for row in rows])
    measured = [(name, row) for name, row in zip(names, rows, strict=True) if not row.fault]
    console.table(title, columns, [[name, *_cells(row, run.metric)] for name, row in measured])
    console.stage("compare", f"all figures: {run.folder / FILE}")


def _short(names: Sequence[str]) -> list[str]:
    """Return the last part of each path or id, or the full one if two have the same last part."""
    last = [name.rstrip("/").rpartition("/")[2] for name in names]
    return [part if last.count(part) == 1 else name for part, name in zip(last, names, strict=True)]


def _cells(row: Compared, metric: str) -> list[str]:
    gain = row.difference
    return [
        f"{row.dev[metric].mean:.3f}",
        f"{row.test[metric].mean:.3f}",
        f"{gain.mean:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]" if gain else "",
        f"{row.pairs_per_second:.0f}" if row.pairs_per_second else "",
    ]
