"""Compare training on an idle machine and beside a busy program, ours and sentence-transformers'.

    python scripts/bench_busy.py PATH/TO/beir
    python scripts/bench_busy.py PATH/TO/beir --precision fp32 --steps 10 --rounds 3

The busy program computes without end on one core. Threads that wait for each other spin, which is OpenMP's default,
sleep at once (`OMP_WAIT_POLICY=PASSIVE`), or sleep soon, which our commands set. The sides are those of bench_train.py.
All combinations take turns; each figure is the median over the rounds, the last column the share of the idle speed that
is lost.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import bench_train
from bench_precision import PRECISIONS, Side, interleaved, training
from bench_sides import LONGEST, parse, save_base

from trainer.__main__ import WAITING
from trainer.errors import TrainerError
from trainer.runtime.precision import machine

WAYS: dict[str, dict[str, str]] = {
    "spinning": {},
    "sleeping": {"OMP_WAIT_POLICY": "PASSIVE"},
    "sleeping soon": WAITING,
}
LOADS = ("idle", "busy")


@contextmanager
def busy() -> Iterator[None]:
    """Run a program beside that computes without end."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def under(side: Side, waiting: dict[str, str], load: str) -> Side:
    """Return the side with a way of waiting and a load of the machine."""

    def run() -> float:
        for name in WAITING:
            os.environ.pop(name, None)
        os.environ.update(waiting)
        with busy() if load == "busy" else nullcontext():
            return side()

    return run


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, metavar="PATH", help="a folder in BEIR layout")
    parser.add_argument("--precision", choices=PRECISIONS, default="bf16")
    parser.add_argument("--steps", type=int, default=10, help="training steps in a round")
    parser.add_argument("--queries-per-step", type=int, default=4)
    parser.add_argument("--max-length", type=int, default=256, help=f"tokens of a pair, {LONGEST} at most")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parse(parser, bench_train.SIDES)
    print(f"{arguments.path.name}, {arguments.shape}, {machine()}, {arguments.precision}\n")
    with tempfile.TemporaryDirectory() as name:
        save_base(arguments.shape, Path(name) / "base")
        try:
            sides = training(arguments.path, Path(name), arguments, [arguments.precision])
        except TrainerError as error:
            parser.error(str(error))
        rows = [(side, wait) for side in sides for wait in WAYS]
        runs = {
            f"{side}, {wait}, {load}": under(sides[side], WAYS[wait], load) for side, wait in rows for load in LOADS
        }
        speeds = interleaved(runs, arguments.rounds)
    print("| | threads that wait are | idle, pairs/s | busy, pairs/s | lost |\n| --- | --- | ---: | ---: | ---: |")
    for side, wait in rows:
        idle, loaded = (speeds[f"{side}, {wait}, {load}"] for load in LOADS)
        print(f"| {side} | {wait} | {idle:.1f} | {loaded:.1f} | {1 - loaded / idle:.0%} |")


if __name__ == "__main__":
    main()
