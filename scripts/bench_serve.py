"""Compare our server with sentence-transformers in a plain FastAPI application: latency, throughput, same scores.

    python scripts/bench_serve.py PATH/TO/beir
    python scripts/bench_serve.py PATH/TO/beir --requests 40 --clients 8 --max-length 256 --ours fp32 bf16

All serve one checkpoint, each in its own process, and get the same requests over loopback from this process, on the
same cores. Latency: one client, requests of 10, 50 and 100 documents. Throughput: several clients at once, requests of
mixed sizes, compared with the model's throughput on the same pairs without a server, which is measured in every round
too. The servers take turns in every round. Theirs is `CrossEncoder.predict` in an `async def` route, one request at a
time, with its fastest batch size. `--ours` lists what our server computes with: a precision, or an engine, which needs
`--model` with the exported folder that has its files. Theirs computes in float32 unless `--their-precision` is bf16.
`--infinity` adds Infinity's server, from the environment of that interpreter, with its engine torch in float32.

Start it with OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=2000, which `reranker serve` sets, so that the threads of all sides
wait in the same way.

The exit code is 1 if float32 scores differ by more than 1e-5 or a request is not answered.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from bench_sides import LONGEST, parse, save_base, texts
from fastapi import FastAPI, Request

from trainer.data import Collection, build_collection
from trainer.recipe import Data
from trainer.runtime.run_folder import read_json, write_json

if TYPE_CHECKING:
    from trainer.model import Reranker

SIZES = (10, 50, 100)  # documents
BATCH_SIZES = (16, 32, 64)
SAME = 1e-5
START_SECONDS = 300
THEIRS = "sentence-transformers"
INFINITY = "Infinity"
PRECISIONS = ("fp32", "bf16", "fp16", "auto")

Requests = list[tuple[str, list[str]]]


def draw_requests(collection: Collection, sizes: list[int], seed: int = 13) -> Requests:
    """Return test queries, each with documents sampled from the full collection."""
    rng = np.random.default_rng(seed)
    queries = rng.choice(collection.answerable("test"), len(sizes)).tolist()
    documents = [rng.integers(len(collection.documents), size=size).tolist() for size in sizes]
    query_texts = texts(collection.queries, "text", set(queries))
    passages = texts(collection.documents, "passage", {row for rows in documents for row in rows})
    return [
        (query_texts[query], [passages[row] for row in rows]) for query, rows in zip(queries, documents, strict=True)
    ]


def serve_theirs(folder: Path) -> None:
    """Serve the checkpoint in a simple application without this project."""
    import torch
    import uvicorn
    from sentence_transformers import CrossEncoder

    task = read_json(folder / "task.json")
    half = task["their_precision"] == "bf16"
    dtype = torch.bfloat16 if half else torch.float32
    model = CrossEncoder(task["model"], max_length=task["max_length"], model_kwargs={"dtype": dtype})
    sample = [(task["sample"][0], text) for text in task["sample"][1]]
    seconds = {}
    for size in (BATCH_SIZES[0], *BATCH_SIZES):
        started = time.perf_counter()
        model.predict(sample, batch_size=size, show_progress_bar=False)
        seconds[size] = time.perf_counter() - started
    batch_size = min(seconds, key=lambda size: seconds[size])
    app = FastAPI()

    @app.get("/health")
    async def health() -> int:
        return batch_size

    @app.post("/rerank")
    async def rerank(request: Request) -> dict[str, Any]:
        body = await request.json()
        pairs = [(body["query"], text) for text in body["documents"]]
        scores = model.predict(pairs, batch_size=batch_size, show_progress_bar=False)
        order = np.argsort(-scores, kind="stable").tolist()
        return {"results": [{"index": index, "relevance_score": float(scores[index])} for index in order]}

    uvicorn.run(app, port=task["their_port"], log_level="warning")


def keywords(variant: str) -> dict[str, Any]:
    """Return the option that selects a variant of ours: a precision or an engine."""
    return {"precision" if variant in PRECISIONS else "engine": variant}


@contextmanager
def servers(folder: Path, arguments: argparse.Namespace) -> Iterator[dict[str, str]]:
    """Start all servers and yield their addresses."""
    serve = "from trainer.__main__ import reranker; reranker()"
    commands = {THEIRS: [sys.executable, __file__, "--side", THEIRS, "--folder", str(folder)]}
    ports = {THEIRS: arguments.port}
    for port, variant in enumerate(arguments.ours, arguments.port + 1):
        option = [word for name, value in keywords(variant).items() for word in (f"--{name}", value)]
        ports[f"ours, {variant}"] = port
        commands[f"ours, {variant}"] = [
            *(sys.executable, "-c", serve, "serve", str(arguments.model), "--port", str(port), *option)
        ]
    if arguments.infinity:
        ports[INFINITY] = max(ports.values()) + 1
        commands[INFINITY] = infinity_command(arguments.infinity, arguments.model, ports[INFINITY])
    started = [subprocess.Popen(words, stdout=subprocess.DEVNULL) for words in commands.values()]
    try:
        for port, process in zip(ports.values(), started, strict=True):
            wait_for(port, process)
        yield {side: f"http://127.0.0.1:{port}" for side, port in ports.items()}
    finally:
        for process in started:
            process.terminate()
            process.wait()


def infinity_command(python: Path, model: Path, port: int) -> list[str]:
    """Return the command that serves the checkpoint with Infinity, without this project's modules."""
    clean = ["env", "-u", "PYTHONPATH", "DO_NOT_TRACK=1", "HF_HUB_OFFLINE=1"]
    options = {"model-id": model, "host": "127.0.0.1", "port": port}
    options |= {"engine": "torch", "device": "cpu", "dtype": "float32"}
    words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    return [*clean, str(python.with_name("infinity_emb")), "v2", "--no-bettertransformer", *words]


def wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until a server answers; exit where it does not start."""
    import httpx

    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and process.poll() is None:
        try:
            httpx.get(f"http://127.0.0.1:{port}/health", timeout=5)
            return
        except httpx.TransportError:
            time.sleep(0.2)
    raise SystemExit(f"bench_serve: the server on port {port} did not start")


async def send(address: str, requests: Requests, clients: int) -> tuple[list[float], float, list[np.ndarray]]:
    """Send all requests from some clients; return seconds of each request, of all, and the scores of each."""
    import httpx

    taken, scores = [0.0] * len(requests), [np.empty(0)] * len(requests)
    waiting = iter(range(len(requests)))

    async def client() -> None:
        async with httpx.AsyncClient(timeout=600, verify=False) as session:  # else it reads all certificates each time
            for number in waiting:
                query, documents = requests[number]
                started = time.perf_counter()
                answer = await session.post(f"{address}/rerank", json={"query": query, "documents": documents})
                taken[number] = time.perf_counter() - started
                results = answer.raise_for_status().json()["results"]
                scores[number] = np.zeros(len(documents))
                scores[number][[row["index"] for row in results]] = [row["relevance_score"] for row in results]

    started = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    return taken, time.perf_counter() - started, scores


def offline(model: Reranker, requests: Requests) -> float:
    """Return the pairs per second of a model without a server, one request at a time."""
    started = time.perf_counter()
    for query, documents in requests:
        model.rank(query, documents)
    return sum(len(documents) for _, documents in requests) / (time.perf_counter() - started)


class Measured:
    """What was measured of each side: seconds of requests by size, pairs per second with and without a server."""

    def __init__(self) -> None:
        self.latency: dict[str, dict[int, list[float]]] = {}
        self.throughput: dict[str, list[float]] = {}
        self.alone: dict[str, list[float]] = {}
        self.scores: dict[str, list[np.ndarray]] = {}

    def round(self, side: str, address: str, alone: dict[int, Requests], mixed: Requests, clients: int) -> None:
        """Measure latency and throughput of one server."""
        for size, requests in alone.items():
            taken, _, _ = asyncio.run(send(address, requests, 1))
            self.latency.setdefault(side, {}).setdefault(size, []).extend(taken)
        _, seconds, self.scores[side] = asyncio.run(send(address, mixed, clients))
        pairs = sum(len(documents) for _, documents in mixed)
        self.throughput.setdefault(side, []).append(pairs / seconds)

    def differences(self) -> dict[str, float]:
        """Return the largest difference of each side's scores to those of sentence-transformers."""
        theirs = self.scores[THEIRS]
        return {
            side: max(float(np.abs(one - other).max()) for one, other in zip(scores, theirs, strict=True))
            for side, scores in self.scores.items()
        }


def compare(path: Path, folder: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """Print one collection's table, and return the largest difference of each side's scores to theirs."""
    from trainer.model import Reranker

    collection = build_collection(Data(path=path), folder / "data")
    alone = {size: draw_requests(collection, [size] * arguments.requests, seed=size) for size in SIZES}
    rng = np.random.default_rng(13)
    mixed = draw_requests(collection, rng.choice(SIZES, arguments.requests).tolist())
    measured = Measured()
    models = {f"ours, {name}": Reranker.load(arguments.model, **keywords(name)) for name in arguments.ours}
    task = {"model": str(arguments.model), "max_length": next(iter(models.values())).max_length}
    task |= {"sample": alone[100][0], "their_port": arguments.port, "their_precision": arguments.their_precision}
    write_json(folder / "task.json", task)
    with servers(folder, arguments) as addresses:
        for address in addresses.values():
            asyncio.run(send(address, mixed[:2], 1))  # warm-up
        for model in models.values():
            model.rank(*mixed[0])
        for number in range(arguments.rounds):
            for side in sorted(addresses, reverse=number % 2 == 1):
                measured.round(side, addresses[side], alone, mixed, arguments.clients)
                if side in models:
                    measured.alone.setdefault(side, []).append(offline(models[side], mixed))
    report(path, measured, arguments)
    return measured.differences()


def report(path: Path, measured: Measured, arguments: argparse.Namespace) -> None:
    """Print a row for each server."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    runs = f"{arguments.requests} requests, {arguments.rounds} rounds, {cores} cores"
    print(f"\n{path.name}, {arguments.model.name}: {runs}")
    print(f"p50 / p95 in ms with one client; pairs/s with {arguments.clients} clients\n")
    sizes = (f"{size} documents" for size in SIZES)
    names = ["", *sizes, "pairs/s", "to theirs", "without a server", "share", "score difference"]
    print(f"| {' | '.join(names)} |\n| --- |{' ---: |' * (len(names) - 1)}")
    speed = {side: float(np.median(rates)) for side, rates in measured.throughput.items()}
    differences = measured.differences()
    for side, by_size in sorted(measured.latency.items()):
        cells = [side]
        for taken in by_size.values():
            middle, high = 1000 * np.percentile(taken, [50, 95])
            cells.append(f"{middle:.0f} / {high:.0f}")
        cells += [f"{speed[side]:.1f}", f"{speed[side] / speed[THEIRS]:.2f}"]
        alone = float(np.median(measured.alone.get(side, [np.nan])))
        cells += [f"{alone:.1f}", f"{speed[side] / alone:.2f}"] if side in measured.alone else ["", ""]
        cells.append("" if side == THEIRS else f"{differences[side]:.1e}")
        print(f"| {' | '.join(cells)} |")


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("collections", type=Path, nargs="*", metavar="PATH", help="folders in BEIR layout")
    parser.add_argument("--requests", type=int, default=40, help="requests of each size, and of mixed sizes")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--max-length", type=int, default=256, help=f"tokens of a pair, {LONGEST} at most")
    parser.add_argument("--ours", nargs="+", default=["fp32"], help=f"precisions ({', '.join(PRECISIONS)}) or engines")
    parser.add_argument("--model", type=Path, help="a model folder instead of --shape, which an engine needs")
    parser.add_argument("--their-precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--infinity", type=Path, metavar="PYTHON", help="the interpreter of an environment that has it")
    parser.add_argument("--port", type=int, default=8123, help="port of theirs; ours are the next ones")
    arguments = parse(parser, [THEIRS])
    if arguments.side:
        serve_theirs(arguments.folder)
        return
    if not arguments.collections:
        parser.error("give at least one collection in BEIR layout")
    given = arguments.model
    for path in arguments.collections:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            if not given:
                arguments.model = folder / arguments.shape
                save_base(arguments.shape, arguments.model, arguments.max_length)
            differences = compare(path, folder, arguments)
        if arguments.their_precision == "fp32" and not differences.get("ours, fp32", 0.0) <= SAME:
            raise SystemExit(f"bench_serve: float32 scores differ by more than {SAME:.0e}")


if __name__ == "__main__":
    main()
