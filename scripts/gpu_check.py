"""Check the project on one GPU: correctness, speed compared with sentence-transformers, and share of the GPU's peak.

    scripts/gpu_check                       # every part, five minutes at most
    scripts/gpu_check --only minilm --only compile
    scripts/gpu_check --dry                 # every part on the CPU with tiny models, to test the script itself
    scripts/gpu_check --list

Every part runs in its own process, which is killed at a time limit, so that a part that fails or hangs does not stop
the others; time that earlier parts did not use is available to later ones. Each result is printed at once. At the end a
table of all results is printed; the JSON file, rewritten after every part, has them with all digits.

Nothing is downloaded: models have random weights, and the collection consists of invented words. The exit code is 0
where every part is ok, 1 where one is not, and 2 where there is no GPU.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import gpu_parts
import gpu_speed
from gpu_chip import NO_GPU
from gpu_parts import Part, Results

# The limits add up to five minutes.
PARTS = [
    Part("machine", 25, "versions, the GPU, a matrix product", gpu_parts.machine),
    Part("tests", 35, "pytest -m gpu", gpu_parts.tests),
    Part("recipe", 40, "a full recipe with a tiny model in bf16, including ONNX", gpu_parts.recipe),
    Part("minilm", 50, "scoring and training at MiniLM-L6's shape", gpu_speed.minilm),
    Part("modernbert", 60, "scoring and training at ModernBERT-base's shape", gpu_speed.modernbert),
    Part("decoder", 45, "scoring and training at Qwen3-0.6B's shape", gpu_speed.decoder),
    Part("compile", 45, "training at MiniLM-L6's shape with torch.compile", gpu_speed.compiled),
]
# Imported once before forking the parts: in a dry run imports take most of the time.
HEAVY = ("torch", "transformers", "sentence_transformers", "sentence_transformers.cross_encoder.losses", "datasets")
HEAVY += (
    "trainer.pipeline",
    "trainer.training",
    "trainer.mining",
    "trainer.evaluation.two_stage",
    "trainer.export",
    "bench_train",
)
SLOWER = 4  # factor of the time limits in a dry run, which may share its cores with other programs
COLUMNS = {
    "pairs_per_second": ("pairs/s", "{:,.1f}"),
    "tokens_per_second": ("tokens/s", "{:,.0f}"),
    "times_theirs": ("times theirs", "{:.2f}"),
    "padding": ("padding", "{:.1%}"),
    "share_of_peak": ("share of peak", "{:.1%}"),
    "peak_mib": ("peak MiB", "{:,.0f}"),
}


@dataclass
class Outcome:
    """The ending of a part (ok, failed, ended at its limit or no GPU) and its results."""

    part: str
    ended: str
    seconds: float
    results: list[dict[str, Any]] = field(default_factory=list)


def run_part(part: Part, dry: bool, seconds: float, context: BaseContext) -> Outcome:
    """Run one part in its own process, with a time limit in seconds."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="gpu_check-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        process: Any = context.Process(target=_run_in_process, args=(part, dry, folder))  # pyright: ignore[reportAttributeAccessIssue]
        process.start()
        process.join(seconds)
        late = process.is_alive()
        _end_group(process.pid)  # the part and its subprocesses
        process.join()
        results = Results(part.name, folder).read()
    if late:
        ended = f"ended at its limit of {seconds:.0f} s"
    elif process.exitcode == NO_GPU:
        ended = "no GPU"
    elif process.exitcode or any("error" in result for result in results):
        ended = "failed"
    else:
        ended = "ok"
    return Outcome(part.name, ended, round(time.monotonic() - started, 1), results)


def _end_group(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:  # it has ended, or has not created its process group yet
        if group in {child.pid for child in multiprocessing.active_children()}:
            os.kill(group, signal.SIGKILL)


def _run_in_process(part: Part, dry: bool, folder: Path) -> None:
    """Run the part in its own process, with its own process group."""
    os.setsid()
    results = Results(part.name, folder)
    results.attempt(part.name, lambda: part.run(results, folder, dry))


def run(parts: Sequence[Part], dry: bool, path: Path, context: BaseContext) -> list[Outcome]:
    """Run parts one after the other, and write all results so far to the JSON file at `path` after each.

    A part may use its own limit and the unused time of the parts before it.
    """
    outcomes: list[Outcome] = []
    started, allowed = time.monotonic(), 0.0
    for part in parts:
        allowed += part.limit * (SLOWER if dry else 1)
        print(f"\n{part.name}: {part.about}", flush=True)
        outcome = run_part(part, dry, started + allowed - time.monotonic(), context)
        outcomes.append(outcome)
        print(f"{part.name}: {outcome.ended}, {outcome.seconds:.1f} s", flush=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"dry": dry, "parts": [asdict(each) for each in outcomes]}, indent=2) + "\n")
        if outcome.ended == "no GPU":
            break
    return outcomes


def print_summary(outcomes: Sequence[Outcome]) -> None:
    """Print the ending of each part, and a row for each measurement, compared with sentence-transformers."""
    print("\n| part | ended | seconds |\n| --- | --- | ---: |")
    for outcome in outcomes:
        print(f"| {outcome.part} | {outcome.ended} | {outcome.seconds:.1f} |")
    rows = [row for outcome in outcomes for row in measurements(outcome)]
    if rows:
        names = [name for name, _ in COLUMNS.values()]
        print(f"\n| part | what | {' | '.join(names)} |\n| --- | --- |{' ---: |' * len(names)}")
    for row in rows:
        cells = [layout.format(row[key]) if row.get(key) is not None else "" for key, (_, layout) in COLUMNS.items()]
        print(f"| {row['part']} | {row['what']} | {' | '.join(cells)} |")


def measurements(outcome: Outcome) -> list[dict[str, Any]]:
    """Return the results with a speed, each with `times_theirs` where theirs has the same name before the comma."""
    rows = [result for result in outcome.results if "pairs_per_second" in result]
    speeds = {row["what"]: row["pairs_per_second"] for row in rows}
    compared = []
    for row in rows:
        theirs = speeds.get(f"{row['what'].split(',')[0]}, {gpu_speed.THEIRS}")
        times = row["pairs_per_second"] / theirs if theirs else None
        compared.append({"part": outcome.part, "times_theirs": times} | row)
    return compared


def start_method(dry: bool) -> BaseContext:
    """Return the start method of processes: spawn for a GPU, whose driver does not survive a fork, else fork."""
    if not dry:
        return multiprocessing.get_context("spawn")
    for name in HEAVY:
        try:
            importlib.import_module(name)
        except ImportError:
            break  # the parts that need it will report it
    return multiprocessing.get_context("fork")


def main() -> None:
    """Parse the command line and run."""
    parts = {part.name: part for part in PARTS}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", choices=parts, action="append", metavar="PART", help="only this part; may be repeated"
    )
    parser.add_argument("--list", action="store_true", help="list the parts and their limits")
    parser.add_argument("--dry", action="store_true", help="run on the CPU, with tiny models")
    parser.add_argument("--json", type=Path, default=Path("runs/gpu_check.json"), help="default: %(default)s")
    arguments = parser.parse_args()
    if arguments.list:
        for part in parts.values():
            print(f"{part.name:<12}{part.limit:>4} s  {part.about}")
        return
    os.environ |= gpu_parts.ENVIRONMENT | (gpu_parts.DRY_ENVIRONMENT if arguments.dry else {})
    chosen = [part for name, part in parts.items() if not arguments.only or name in arguments.only]
    outcomes = run(chosen, arguments.dry, arguments.json, start_method(arguments.dry))
    print_summary(outcomes)
    print(f"\nall results are in {arguments.json}")
    if outcomes[-1].ended == "no GPU":
        print("gpu_check: torch finds no CUDA GPU; --dry runs on the CPU", file=sys.stderr)
        sys.exit(2)
    sys.exit(any(outcome.ended != "ok" for outcome in outcomes))


if __name__ == "__main__":
    main()
