"""Compare the engines of a reranker on a CPU: torch in float32 and bf16, ONNX Runtime in float32 and int8.

    python scripts/bench_engines.py data/runbooks
    python scripts/bench_engines.py PATH/TO/beir [PATH ...] --pairs 320 --max-length 256 --rounds 5
    python scripts/bench_engines.py PATH/TO/beir --model runs/NAME
    python scripts/bench_engines.py PATH/TO/beir --peers PYTHON onnx onnx-O3 onnx-O3-int8 --peers PYTHON openvino-fp32

Without --model there are two of MiniLM-L6's shape: a plain classifier whose head is random, and the interaction head.
All engines score the same test queries and documents, from texts to logits. They take turns, and each figure is the
median over the rounds. CPU seconds count more than seconds on a machine that is busy. Kendall's tau and the largest
difference are to torch's float32 scores; the random head's are so close to each other that its tau is a lower bound.

--peers adds backends of sentence-transformers (the engines of peer_engines.py), each in a process of the environment
that PYTHON belongs to, with the batch size that is fastest there, for models without the interaction head.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from bench_score import Pairs, draw_pairs
from bench_sides import LONGEST, MINILM, parse, save_base, texts

from trainer import inference
from trainer.data import Collection, build_collection
from trainer.errors import TrainerError
from trainer.inference import Quality, Session
from trainer.model import Reranker, TokenizedCollection, engines, packing
from trainer.recipe import Data
from trainer.runtime.precision import machine
from trainer.runtime.run_folder import write_json

FLAGS = ("avx2", "fma", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimddp", "i8mm")
PEERS = Path(__file__).with_name("peer_engines.py")


class Ours:
    """One engine of this project's reranker."""

    def __init__(self, reranker: Reranker, collection: Collection, rows: Pairs, precision: Any, logits: Any) -> None:
        self.reranker, self.collection, self.rows = reranker, collection, rows
        self.precision, self.logits = precision, logits

    def score(self) -> np.ndarray:
        """Return logits computed from texts."""
        self.reranker.compute_in(self.precision)
        self.reranker.compute_with("torch", self.logits)
        return self.reranker.score_tokens(TokenizedCollection(self.collection, self.reranker.pairs).pairs(self.rows))

    def round(self) -> tuple[float, float]:
        """Return the seconds of one scoring, and the CPU seconds."""
        started, used = time.perf_counter(), time.process_time()
        self.score()
        return time.perf_counter() - started, time.process_time() - used


class Theirs:
    """One backend of sentence-transformers, in a process of another environment."""

    def __init__(self, python: str, engine: str, folder: Path) -> None:
        self.scores = folder / f"scores-{engine}.npy"
        command = [python, str(PEERS), str(folder), engine]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._answer()  # with its batch size: it is ready

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):  # libraries print, too
                return json.loads(line)
        raise EOFError

    def round(self) -> tuple[float, float]:
        """Return the seconds of one scoring, and the CPU seconds."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        answer = self._answer()
        return answer["seconds"], answer["cpu"]

    def score(self) -> np.ndarray:
        """End the process, and return its logits."""
        self.process.communicate()
        return np.load(self.scores)


Sides = dict[str, Ours | Theirs]


def describe_cpu() -> str:
    """Return the processor, its flags for matrix products, threads and versions."""
    import onnxruntime

    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text(encoding="utf-8") if cpuinfo.is_file() else ""
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    present = {word for line in text.splitlines() if line.startswith(("flags", "Features")) for word in line.split()}
    flags = " ".join(flag for flag in FLAGS if flag in present)
    return f"{names[0] if names else 'CPU'}; {flags}; {machine()}; onnxruntime {onnxruntime.__version__}"


def ours(reranker: Reranker, collection: Collection, rows: Pairs, folder: Path) -> dict[str, Ours]:
    """Return our engines, warmed up."""
    batch = reranker.batches(TokenizedCollection(collection, reranker.pairs).pairs(rows))[1][0]
    for name in inference.FORMATS:
        inference.write(name, reranker.model, batch, folder)
    graphs = {name: engines.computed_by(Session(folder / file)) for name, file in inference.FILES.items()}
    computed = {"torch fp32": ("fp32", packing.logits), "torch bf16": ("bf16", packing.logits)}
    computed |= {name: ("fp32", logits) for name, logits in graphs.items()}
    sides = {name: Ours(reranker, collection, rows, *how) for name, how in computed.items()}
    for side in sides.values():
        side.score()
    return sides


def theirs(reranker: Reranker, collection: Collection, rows: Pairs, peers: list[list[str]], folder: Path) -> Sides:
    """Return the backends of sentence-transformers that were asked for and start; each has chosen its batch size."""
    queries, documents = map(set, zip(*rows, strict=True))
    text = texts(collection.queries, "text", queries), texts(collection.documents, "passage", documents)
    pairs = [(text[0][query], text[1][document]) for query, document in rows]
    write_json(folder / "pairs.json", {"pairs": pairs, "max_length": reranker.max_length})
    reranker.save(folder / "base")
    sides: Sides = {}
    for python, engine in ((python, engine) for python, *names in peers for engine in names):
        try:
            sides[f"sentence-transformers {engine}"] = Theirs(python, engine, folder)
        except EOFError:
            print(f"sentence-transformers {engine}: not available; its own message is above", flush=True)
    return sides


def compare(title: str, reranker: Reranker, collection: Collection, peers: list[list[str]], arguments: Any) -> None:
    """Print a row for each engine."""
    rows = draw_pairs(collection, arguments.pairs)
    with tempfile.TemporaryDirectory() as name:
        sides: Sides = {**ours(reranker, collection, rows, Path(name))}
        sides |= theirs(reranker, collection, rows, peers, Path(name)) if peers else {}
        taken: dict[str, list[tuple[float, float]]] = {side: [] for side in sides}
        for number in range(arguments.rounds):
            for side in sorted(sides, reverse=number % 2 == 1):
                taken[side].append(sides[side].round())
        scores = {side: one.score() for side, one in sides.items()}
    medians = {side: np.median(own, axis=0) for side, own in taken.items()}
    expected = scores["torch fp32"]
    sizes = [reranker.pairs.size(pair) for pair in TokenizedCollection(collection, reranker.pairs).pairs(rows)]
    size = f"{len(rows)} pairs of {np.mean(sizes):.0f} tokens, scores spread over {np.ptp(expected):.2g}"
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
    parser.add_argument(
        "--peers", nargs="+", action="append", default=[], metavar=("PYTHON", "ENGINE"), help="backends of theirs"
    )
    arguments = parse(parser, ())
    print(describe_cpu())
    try:
        for path in arguments.collections:
            with tempfile.TemporaryDirectory() as name:
                collection = build_collection(Data(path=path), Path(name) / "data")
                for title, reranker in models(arguments, Path(name)).items():
                    peers = [] if reranker.is_interaction else arguments.peers
                    compare(f"{path.name}, {title}", reranker, collection, peers, arguments)
    except TrainerError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
