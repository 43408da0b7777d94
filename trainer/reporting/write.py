"""Write the files for people: the details of an evaluation, and the report of a run."""

from __future__ import annotations

from pathlib import Path

from trainer.data import Collection
from trainer.reporting.depths import FILE as DEPTHS
from trainer.reporting.depths import write_depths
from trainer.reporting.facts import Facts, seed_of
from trainer.reporting.page import render
from trainer.reporting.queries import FILE as QUERIES
from trainer.reporting.queries import write_queries
from trainer.reporting.text import markdown_report
from trainer.runtime import console
from trainer.runtime.run_folder import read_record, remove, replacing

PAGE, MARKDOWN = "report.html", "report.md"  # in the run folder


def write_details(collection: Collection, folder: Path, seed: int) -> None:
    """Write `queries.jsonl` and `depths.json` to the folder of an evaluation, from its TREC runs and results.json."""
    write_queries(collection, folder)
    write_depths(collection, folder, seed)


def refresh_report(run: Path) -> None:
    """Write the report of a run unless there is one that is newer than its evaluation and its judge's grades."""
    page = run / PAGE
    done = [run / stage / "done.json" for stage in ("evaluate", "judge")]
    newest = max(path.stat().st_mtime_ns for path in done if path.is_file())
    if not page.is_file() or page.stat().st_mtime_ns < newest:
        write_report(run)
    console.stage("report", str(page))


def write_report(run: Path) -> Path:
    """Write `report.html` and `report.md` of an evaluated run, and return the path of the page.

    Raise RunError if the run folder has no finished evaluation.
    """
    folder = run / "evaluate"
    if (folder / "results.json").is_file() and not all((folder / name).is_file() for name in (QUERIES, DEPTHS)):
        # The evaluation is by an earlier version, which did not write these files.
        recipe = read_record(folder / "recipe.json") or {}
        write_details(Collection.open(run / "data"), folder, seed_of(recipe))
    facts = Facts(run)
    for name, content in ((PAGE, render(facts)), (MARKDOWN, markdown_report(facts))):
        if (run / name).is_dir():
            remove(run / name)
        with replacing(run / name) as partial:
            partial.write_text(content, encoding="utf-8")
    return run / PAGE
