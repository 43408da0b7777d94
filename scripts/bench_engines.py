"""Compare the engines of a reranker on a CPU: torch in float32 and bf16, ONNX Runtime in float32 and int8.

    python scripts/bench_engines.py data/runbooks
    python scripts/bench_engines.py PATH/TO/beir [PATH ...] --pairs 320 --max-length 256 --rounds 5
    python scripts/bench_engines.py PATH/TO/beir --model runs/NAME

Without --model there are two of MiniLM-L6's shape: a plain classifier whose head is random, and the interaction head.
All engines compute the same batches of nearly equal lengths from test queries and documents; tokenising does not count.
They take turns, and each figure is the median over the rounds. CPU seconds count more than seconds on a machine that is
busy. Kendall's tau and the largest difference are to torch's float32 scores; the random head's are so close to each
other that its tau is a lower bound.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from bench_score import draw_pairs
from bench_sides import LONGEST, MINILM, parse, save_base

from trainer import inference
from trainer.data import Collection, build_collection
from trainer.errors import TrainerError
from trainer.inference import Quality, Session
from trainer.model import Reranker, TokenizedCollection
from trainer.model.packing import Batch, logits
from trainer.recipe import Data
from trainer.runtime.linear import scoring_in
from trainer.runtime.precision import machine

FLAGS = ("avx2", "fma", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimddp", "i8mm")
Scores = Callable[[], np.ndarray]  # of all pairs, in their order


def describe_cpu() -> str:
    """Return the processor, its flags for matrix products, threads and versions."""
    import onnxruntime

    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text(encoding="utf-8") if cpuinfo.is_file() else ""
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    present = {word for line in text.splitlines() if line.startswith(("flags", "Features")) for word in line.split()}
    flags = " ".join(flag for flag in FLAGS if flag in present)
    return f"{names[0] if names else 'CPU'}; {flags}; {machine()}; onnxruntime {onnxruntime.__version__}"


def engines(reranker: Reranker, batches: list[Batch], order: np.ndarray, folder: Path) -> dict[str, Scores]:
    """Return the function of each engine that scores all pairs."""
    import torch

    for name in inference.FORMATS:
        inference.write(name, reranker.model, batches[0], folder)

    def on_torch(precision: str) -> Scores:
        def score() -> np.ndarray:
            within = scoring_in(reranker.model, reranker.device, precision, len(order))  # pyright: ignore[reportArgumentType]
            with torch.no_grad(), within:
                parts = [logits(reranker.model, batch, packed=False) for batch in batches]
            return torch.cat(parts).numpy()[order]

        return score

    def on_onnx(path: Path) -> Scores:
        session = Session(path)
        return lambda: torch.cat([session.logits(batch) for batch in batches]).numpy()[order]

    return {f"torch {precision}": on_torch(precision) for precision in ("fp32", "bf16")} | {
        name: on_onnx(folder / file) for name, file in inference.FILES.items()
    }


def compare(title: str, reranker: Reranker, collection: Collection, arguments: argparse.Namespace) -> None:
    """Print a row for each engine."""
    rows = draw_pairs(collection, arguments.pairs)
    pairs = TokenizedCollection(collection, reranker.pairs).pairs(rows)
    cut, batches = reranker.batches(pairs)
    with tempfile.TemporaryDirectory() as name:
        sides = engines(reranker, batches, np.concatenate(cut).argsort(), Path(name))
        scores = {side: score() for side, score in sides.items()}  # warm-up
        seconds: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
        for number in range(arguments.rounds):
            for side in sorted(sides, reverse=number % 2 == 1):
                started, used = time.perf_counter(), time.process_time()
                sides[side]()
                seconds[side].append((time.perf_counter() - started, time.process_time() - used))
    medians = {side: np.median(taken, axis=0) for side, taken in seconds.items()}
    expected = scores["torch fp32"]
    tokens = np.mean([reranker.pairs.size(pair) for pair in pairs])
    size = f"{len(rows)} pairs of {tokens:.0f} tokens, scores spread over {np.ptp(expected):.2g}"
    print(f"\n{title}: {size}, median of {arguments.rounds} rounds\n")
    names = ["engine", "pairs/s", "times torch fp32", "pairs per CPU second", "times torch fp32", "tau", "difference"]
    print(f"| {' | '.join(names)} |\n| --- |{' ---: |' * (len(names) - 1)}")
    for side in sides:
        speeds, base = len(rows) / medians[side], len(rows) / medians["torch fp32"]
        quality = Quality.of(scores[side], expected, 0)
        cells = [f"{speed:.1f} | {speed / first:.2f}" for speed, first in zip(speeds, base, strict=True)]
        print(f"| {side} | {' | '.join(cells)} | {quality.tau:.3f} | {quality.difference:.1e} |", flush=True)


def models(arguments: argparse.Namespace, folder: Path) -> dict[str, Reranker]:
    """Return the models to measure, on the CPU."""
    options = {"max_length": arguments.max_length, "device": "cpu"}
    if arguments.model:
        return {arguments.model: Reranker.load(arguments.model, **options)}
    save_base(arguments.shape, folder / "base")
    classifier = Reranker.load(folder / "base", **options)
    if arguments.shape != "minilm":
        return {f"classifier, {arguments.shape}": classifier}
    return {"classifier": classifier, "interaction head": Reranker.load(MINILM, head="interaction", **options)}


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("collections", type=Path, nargs="+", metavar="PATH", help="folders in BEIR layout")
    parser.add_argument("--model", help="a run folder, a model folder or a Hub id instead of MiniLM")
    parser.add_argument("--pairs", type=int, default=320)
    parser.add_argument("--max-length", type=int, default=256, help=f"tokens of a pair, {LONGEST} at most")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parse(parser, ())
    print(describe_cpu())
    try:
        for path in arguments.collections:
            with tempfile.TemporaryDirectory() as name:
                collection = build_collection(Data(path=path), Path(name) / "data")
                for title, reranker in models(arguments, Path(name)).items():
                    compare(f"{path.name}, {title}", reranker, collection, arguments)
    except TrainerError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
