"""List the runs in a folder: data, base model, gain, verdict, state and size of each."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import typer
from rich.filesize import decimal

from trainer.commands.run_folders import damage_named, runs_in, size_of, stages_of
from trainer.errors import RunError
from trainer.evaluation.gate import ONLY_FUSED, WORSE
from trainer.evaluation.results import Results
from trainer.runtime import console
from trainer.runtime.lock import is_held
from trainer.runtime.run_folder import read_record

DATA = ("path", "corpus", "pairs")  # the ways to name a collection
Records = Mapping[str, Mapping[str, Any] | None]  # {stage: content of done.json}: None without one, empty if damaged


@dataclass
class Listed:
    """One run; unknown values are None.

    `state` is finished, unfinished, running, out of date or damaged; `fault` names what is damaged or out of date.
    """

    name: str
    folder: str
    state: str = "unfinished"
    fault: str | None = None
    stage: str | None = None  # the last one that is finished
    date: str | None = None  # when it was finished, with the time zone
    data: str | None = None
    base: str | None = None
    metric: str | None = None
    first_stage: float | None = None
    shipped: float | None = None
    system: str | None = None  # the name of the shipped system in results.json
    gain: float | None = None
    p: float | None = None
    verdict: str | None = None
    bytes: int = 0


def list_runs(folder: Path, as_json: bool) -> None:
    """Print the runs in a folder, the newest last; raises RunError if the folder does not exist."""
    listed = sorted(map(describe, runs_in(folder)), key=lambda run: run.date or "")
    if as_json:
        typer.echo(json.dumps([asdict(run) for run in listed], indent=2))
        return
    if not listed:
        console.stage("runs", f"there are no runs in {folder} yet; train RECIPE makes one")
        return
    for run in listed:
        console.stage(run.name, f"{_verdict(run)}, {_date(run)}")
        console.stage("", _summary(run))
        if run.fault:
            console.warn("runs", f"{run.name}: {run.fault}")


def describe(folder: Path) -> Listed:
    """Return the description of a run; a damaged run gets the state damaged and raises no error."""
    run = Listed(folder.name, str(folder), bytes=size_of(folder))
    stages = stages_of(folder)
    records = {stage.name: read_record(stage / "done.json") for stage in stages}
    finished = [stage for stage in stages if records[stage.name] is not None]
    if finished:
        newest = max(finished, key=lambda stage: (stage / "done.json").stat().st_mtime_ns)
        run.stage = newest.name
        finished_at = datetime.fromtimestamp((newest / "done.json").stat().st_mtime)
        run.date = finished_at.astimezone().isoformat(timespec="seconds")
    _name_inputs(run, stages)
    damage = _damage(folder, records)
    if records.get("evaluate") is not None:
        damage = _measure(run, folder / "evaluate") or damage
    _judge_state(run, folder, records, damage)
    return run


def _name_inputs(run: Listed, stages: Sequence[Path]) -> None:
    """Set data and base model from the recipe of the evaluation, or of the newest stage if there is no evaluation.

    The recipe is read without checks, because one of an older version may be invalid by now.
    """
    measured = [stage for stage in stages if stage.name == "evaluate"]
    recipe = read_record((measured or [*stages])[-1] / "recipe.json") or {}
    data, reranker = recipe.get("data"), recipe.get("reranker")
    if isinstance(data, dict):
        named = [data[key] for key in DATA if data.get(key)]
        run.data = ", ".join(map(str, named[0] if isinstance(named[0], list) else named[:1])) if named else None
    if isinstance(reranker, dict) and isinstance(reranker.get("model"), str):
        run.base = reranker["model"]


def _measure(run: Listed, evaluate: Path) -> str | None:
    """Set the test results; return a message about damaged files, None if there are none."""
    try:
        with damage_named(evaluate):
            results = Results.load(evaluate)
            fused = results.verdict == ONLY_FUSED and "fused" in results.systems
            run.system = "fused" if fused else results.shipped
            run.metric = results.metrics[0]
            run.first_stage = results.systems["first_stage"][run.metric].mean
            run.shipped = results.systems[run.system][run.metric].mean
            run.gain = round(run.shipped - run.first_stage, 6)
            of_gain = [row for row in results.main_comparisons() if row["against"] == "first_stage"]
            run.p = next((row["p_adjusted"] for row in of_gain if row["system"] == run.system), None)
            run.verdict = str(results.verdict) or None
    except RunError as error:
        return error.faults[0]
    return None


def _damage(folder: Path, records: Records) -> str | None:
    """Return a message if a file of a finished stage is missing or differs in size from its record, else None.

    Hashes are not compared, which would take long for many runs; `push` compares them.
    """
    for stage, notes in records.items():
        if notes is None:
            continue
        files = notes.get("files")
        if not isinstance(files, dict):
            return f"{stage}/done.json is damaged"
        for name, recorded in files.items():
            path = folder / stage / name
            size = recorded.get("bytes") if isinstance(recorded, dict) else None
            if not path.is_file():
                return f"{stage}/{name} is missing"
            if path.stat().st_size != size:
                return f"{stage}/{name} differs in size from its record"
    return None


def _judge_state(run: Listed, folder: Path, records: Records, damage: str | None) -> None:
    done = {stage: notes for stage, notes in records.items() if notes}
    left = {str(notes.get("content")) for notes in done.values()} | {str(None)}  # None is before the first stage
    stale = [stage for stage, notes in done.items() if str(notes.get("before")) not in left]
    delivered = "evaluate" in done and ("export" in done or run.verdict == WORSE)
    if is_held(folder / ".lock"):
        run.state = "running"
    elif damage:
        run.state, run.fault = "damaged", damage
    elif stale:
        run.state = "out of date"
        run.fault = f"of older inputs: {', '.join(stale)}; run the recipe again"
    elif delivered and len(done) == len(records):
        run.state = "finished"


def _date(run: Listed) -> str:
    """Return the date and time without the time zone, in words where it is unknown."""
    return run.date[:16].replace("T", " ") if run.date else "date unknown"


def _summary(run: Listed) -> str:
    """Return the run's data, base, metric before and after with the gain, and size; without the unknown values."""
    named = " with ".join(_short(one) for one in (run.data, run.base) if one)
    measured = ""
    if run.first_stage is not None and run.shipped is not None and run.gain is not None:
        measured = f"{run.metric} {run.first_stage:.3f} -> {run.shipped:.3f} ({run.gain:+.3f})"
    return "; ".join(part for part in (named, measured, decimal(run.bytes)) if part)


def _verdict(run: Listed) -> str:
    if run.state == "finished":
        return run.verdict or "finished"
    if run.state == "unfinished":
        return f"unfinished, after {run.stage}" if run.stage else "unfinished"
    return f"{run.verdict} ({run.state})" if run.verdict and run.state != "damaged" else run.state


def _short(reference: str) -> str:
    """Return the last part of a path or Hub id, or the package of package:NAME/SUBFOLDER."""
    if reference.startswith("package:"):
        return reference.removeprefix("package:").partition("/")[0]
    return reference.rstrip("/").rpartition("/")[2]
