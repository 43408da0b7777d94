"""Compare half precision with float32, ours and sentence-transformers', in training and scoring, interleaved.

    python scripts/bench_precision.py PATH/TO/beir
    python scripts/bench_precision.py PATH/TO/beir --pairs 320 --steps 10 --queries-per-step 4 --rounds 5

The sides are those of bench_score.py and bench_train.py: one plain checkpoint, the same pairs and groups, theirs with
the batch size or pass that is fastest in each precision (bf16 weights in scoring, `bf16=True` in training). The four
sides take turns; each figure is the median over the rounds.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import bench_score
import bench_train
import numpy as np
from bench_sides import LONGEST, parse, run_side, save_base

from trainer.data import build_collection
from trainer.errors import TrainerError
from trainer.recipe import Data
from trainer.runtime.precision import machine
from trainer.runtime.run_folder import write_json

PRECISIONS = ("fp32", "bf16")
Side = Callable[[], float]  # one round; returns its pairs per second


def scoring(path: Path, folder: Path, arguments: argparse.Namespace) -> dict[str, Side]:
    """Return the sides that score, warmed up."""
    collection = build_collection(Data(path=path), folder / "data")
    rows = bench_score.draw_pairs(collection, arguments.pairs)
    sides: dict[str, Side] = {}
    for who, kind in bench_score.SIDES.items():
        for precision in PRECISIONS:
            side = kind(folder, {"max_length": arguments.max_length, "pairs": rows, "precision": precision})
            side.score(rows)
            sides[f"{who}, {precision}"] = lambda side=side: len(rows) / bench_score.timed(lambda: side.score(rows))[0]
    return sides


def training(
    path: Path, folder: Path, arguments: argparse.Namespace, precisions: Sequence[str] = PRECISIONS
) -> dict[str, Side]:
    """Return the sides that train, each in its own process."""
    names = ("steps", "queries_per_step", "max_length")
    task = {"path": str(path.resolve()), "negatives": 7, "loss": "listwise"}
    task |= {name: getattr(arguments, name) for name in names}
    bench_train.prepare(task, folder)
    in_step = task["queries_per_step"] * (1 + task["negatives"])
    sides: dict[str, Side] = {}
    for precision in precisions:
        write_json(folder / "task.json", task | {"precision": precision})
        fastest = run_side(bench_train.__file__, "probe", folder)["pass"]
        for who in ("ours", "sentence-transformers"):

            def run(who: str = who, precision: str = precision, fastest: int = fastest) -> float:
                write_json(folder / "task.json", task | {"precision": precision, "pass": fastest})
                seconds = run_side(bench_train.__file__, who, folder)["seconds"]
                return in_step / float(np.median(seconds[bench_train.WARM_STEPS :]))

            sides[f"{who}, {precision}"] = run
    return dict(sorted(sides.items()))


def interleaved(sides: dict[str, Side], rounds: int) -> dict[str, float]:
    """Return the median pairs per second of each side; the order alternates from round to round."""
    speeds: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(rounds):
        for side in sorted(sides, reverse=number % 2 == 1):
            speeds[side].append(sides[side]())
    return {side: float(np.median(values)) for side, values in speeds.items()}


def show(title: str, speeds: dict[str, float]) -> None:
    """Print a row for each side, with its speed as a multiple of our fp32 and of theirs in both precisions."""
    baselines = ["ours, fp32", *(f"sentence-transformers, {precision}" for precision in PRECISIONS)]
    print(f"\n| {title} | pairs/s | {' | '.join(f'times {name}' for name in baselines)} |")
    print(f"| --- |{' ---: |' * (1 + len(baselines))}")
    for side, speed in speeds.items():
        print(
            f"| {side} | {speed:.1f} | {' | '.join(f'{speed / speeds[name]:.2f}' for name in baselines)} |", flush=True
        )


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, metavar="PATH", help="a folder in BEIR layout")
    parser.add_argument("--pairs", type=int, default=320, help="pairs scored in a round")
    parser.add_argument("--steps", type=int, default=10, help="training steps in a round")
    parser.add_argument("--queries-per-step", type=int, default=4)
    parser.add_argument("--max-length", type=int, default=256, help=f"tokens of a pair, {LONGEST} at most")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of scoring, and of training")
    arguments = parse(parser, bench_train.SIDES)
    print(f"{arguments.path.name}, {arguments.shape}, {machine()}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_base(arguments.shape, folder / "base")
        try:
            show("scoring", interleaved(scoring(arguments.path, folder, arguments), arguments.rounds))
            show("training", interleaved(training(arguments.path, folder, arguments), arguments.rounds))
        except TrainerError as error:
            parser.error(str(error))


if __name__ == "__main__":
    main()
