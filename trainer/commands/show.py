"""Show a finished run on the terminal: its test table, the queries with the largest changes, or a single query."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.filesize import decimal

from trainer.commands.run_folders import damage_named, stages_of
from trainer.errors import RunError, did_you_mean
from trainer.evaluation.holes import show_judged
from trainer.evaluation.results import Results
from trainer.evaluation.results import show as show_results
from trainer.forecast import read_predicted
from trainer.reporting.charts import sign
from trainer.reporting.facts import Facts, worst_first
from trainer.reporting.queries import FILE, cut, read_queries
from trainer.runtime import console
from trainer.runtime.run_folder import read_record

EXAMPLES = 5  # queries with the largest losses, and as many with the largest gains
LETTERS = 100  # of a text in a table
CHANGES = {"lost": "largest losses", "won": "largest wins"}
KINDS = {"won": "better", "same": "the same", "lost": "worse"}
JUDGED = {None: "not judged", False: "not relevant", True: "relevant"}


def read_evaluation(folder: Path) -> tuple[Facts, Results]:
    """Return an evaluation; raises RunError if there is none, or if its results or query records are damaged."""
    queries = folder / "evaluate" / FILE
    if (folder / "evaluate" / "results.json").is_file() and not queries.is_file():
        raise RunError(f"{queries}: is not there; reranker report {folder} makes it again")
    with damage_named(folder / "evaluate"):
        facts, results = Facts(folder), Results.load(folder / "evaluate")
        results.rows()
        if len(facts.queries) != facts.results["queries"]:
            raise ValueError(f"{len(facts.queries)} queries instead of {facts.results['queries']}")
        if facts.metric != results.metrics[0]:
            raise ValueError(f"the systems differ in their first metric: {facts.metric}, {results.metrics[0]}")
        return facts, results


def show_run(folder: Path) -> None:
    """Print the verdict, the test table and the largest changes; raises RunError if the run has no evaluation."""
    facts, results = read_evaluation(folder)
    with damage_named(facts.evaluate):
        changes = {title: _rows(facts, kind, EXAMPLES) for kind, title in CHANGES.items()}
    with damage_named(facts.run / "judge"):
        judged = facts.judged_holes
    show_results(results)
    if judged is not None:
        show_judged(judged, results.label)
    for title, rows in changes.items():
        _show_changes(facts, title, rows)
    counts = ", ".join(f"{facts.kinds[kind]} {word}" for kind, word in KINDS.items())
    console.stage("show", f"{len(facts.queries)} test queries: {counts}")
    console.stage(
        "show", f"one of them: reranker show {folder} --query ID; all of them: {facts.evaluate}/queries.jsonl"
    )


def show_worst(folder: Path, most: int) -> None:
    """Print the test queries with the largest losses."""
    facts, _ = read_evaluation(folder)
    with damage_named(facts.evaluate):
        rows = _rows(facts, "lost", most)
    _show_changes(facts, CHANGES["lost"], rows)


def show_query(folder: Path, identity: str) -> None:
    """Print one test query with its best documents before and after; raises RunError for an unknown id."""
    facts, _ = read_evaluation(folder)
    record = next((one for one in read_queries(facts.evaluate) if one["id"] == identity), None)
    if record is None:
        near = did_you_mean(identity, [one["id"] for one in facts.queries[:1000]])
        raise RunError(f"{folder}: has no test query with the id {identity!r}{_shortened(near)}")
    with damage_named(facts.evaluate):
        before, after, change, ranks = _figures(facts, record)
        text, cause = record["text"], f"; {record['cause']}" if record["cause"] else ""
        rows = [_document(one) for one in record["documents"]]
    console.stage("query", f"{identity}: {text}")
    console.stage("query", f"{facts.metric} {before} -> {after} ({change}); first relevant {ranks}{cause}")
    console.table("", ["document", "rank before", "after", "judged", "text"], rows, left=["judged", "text"])


def show_stages(folder: Path) -> None:
    """Print the predicted and the real time, memory and folder of every finished stage."""
    rows, forecast = [], read_predicted(folder)
    for stage in stages_of(folder):
        notes = read_record(stage / "done.json") or {}
        seconds, memory = notes.get("seconds"), notes.get("peak_memory_mib")
        took = f"{seconds:,.1f} s" if isinstance(seconds, int | float) else "unfinished"
        peak = decimal(memory * 1024**2) if isinstance(memory, int) else ""
        predicted = f"{forecast[stage.name]:,.1f} s" if stage.name in forecast else ""
        rows.append([stage.name, predicted, took, peak, str(stage)])
    console.table("", ["stage", "predicted", "time", "peak memory", "folder"], rows, left=["folder"])


def _figures(facts: Facts, record: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """Return the metric before and after, its change, and the ranks of the first relevant document."""
    before, after = (f"{record['scores'][system]:.3f}" for system in ("first_stage", facts.shipped))
    ranks = [str(record["first_relevant"][system] or "none") for system in ("first_stage", facts.shipped)]
    return before, after, sign(facts.gain_of(record)), " -> ".join(ranks)


def _rows(facts: Facts, kind: str, most: int) -> list[list[str]]:
    """Return the rows of the queries with the largest losses or gains."""
    records = worst_first(facts, kind, most)
    return [[str(record["id"]), *_figures(facts, record), cut(record["text"], LETTERS)] for record in records]


def _show_changes(facts: Facts, title: str, rows: list[list[str]]) -> None:
    if not rows:
        console.stage("show", f"{title}: none")
        return
    columns = ["query", f"{facts.metric} before", "after", "change", "first relevant", "text"]
    console.table(title, columns, rows, left=["text"])


def _document(one: Mapping[str, Any]) -> list[str]:
    """Return the row of a document: its ranks in both lists, its judgement and its text."""
    judged = JUDGED[None if one["grade"] is None else bool(one["relevant"])]
    grade = "" if one["grade"] is None else f" ({one['grade']})"
    ranks = [str(one[when] or "none") for when in ("before", "after")]
    return [str(one["id"]), *ranks, judged + grade, cut(one["text"], 2 * LETTERS)]


def _shortened(hint: str) -> str:
    return hint if len(hint) <= 200 else f"{hint[:200]} ..."
