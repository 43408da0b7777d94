"""Compare our server with sentence-transformers in a plain FastAPI application: latency, throughput, same scores.

    python scripts/bench_serve.py PATH/TO/beir
    python scripts/bench_serve.py PATH/TO/beir --requests 40 --clients 8 --max-length 256 --precision bf16

Both serve one plain checkpoint, each in its own process, and get the same requests over loopback from this process, on
the same cores. Latency: one client, requests of 10, 50 and 100 documents. Throughput: several clients at once, requests
of mixed sizes, compared with the model's throughput on the same pairs without a server. The servers take turns in every
round. Theirs is `CrossEncoder.predict` in an `async def` route, one request at a time, with its fastest batch size.
`--precision` is for ours only; theirs computes in float32 unless `--their-precision` is bf16.

The exit code is 1 where float32 scores differ by more than 1e-5 or a request is not answered.
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
from typing import Any

import numpy as np
from bench_sides import LONGEST, parse, save_base, texts
from fastapi import FastAPI, Request

from trainer.data import Collection, build_collection
from trainer.recipe import Data
from trainer.runtime.run_folder import read_json, write_json

SIZES = (10, 50, 100)  # documents
BATCH_SIZES = (16, 32, 64)
SAME = 1e-5
START_SECONDS = 300

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
    model = CrossEncoder(str(folder / "base"), max_length=task["max_length"], model_kwargs={"dtype": dtype})
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


@contextmanager
def servers(folder: Path, arguments: argparse.Namespace) -> Iterator[dict[str, str]]:
    """Start both servers and yield their addresses."""
    serve = "from trainer.__main__ import reranker; reranker()"
    options = ["--port", str(arguments.port), "--precision", arguments.precision]
    ours = [sys.executable, "-c", serve, "serve", str(folder / "base"), *options]
    theirs = [sys.executable, __file__, "--side", "sentence-transformers", "--folder", str(folder)]
    ports = {"ours": arguments.port, "sentence-transformers": arguments.port + 1}
    started = [subprocess.Popen(words, stdout=subprocess.DEVNULL) for words in (ours, theirs)]
    try:
        for port, process in zip(ports.values(), started, strict=True):
            wait_for(port, process)
        yield {side: f"http://127.0.0.1:{port}" for side, port in ports.items()}
    finally:
        for process in started:
            process.terminate()
            process.wait()


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
        async with httpx.AsyncClient(timeout=600) as session:
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


def offline(folder: Path, requests: Requests, precision: Any) -> float:
    """Return the pairs per second of the model without a server, one request at a time, after a warm-up request."""
    from trainer.model import Reranker

    model = Reranker.load(folder / "base", precision=precision)
    model.score(*requests[0])
    started = time.perf_counter()
    for query, documents in requests:
        model.score(query, documents)
    return sum(len(documents) for _, documents in requests) / (time.perf_counter() - started)


def compare(path: Path, folder: Path, arguments: argparse.Namespace) -> float:
    """Print one collection's table, and return the largest difference of scores."""
    collection = build_collection(Data(path=path), folder / "data")
    alone = {size: draw_requests(collection, [size] * arguments.requests, seed=size) for size in SIZES}
    rng = np.random.default_rng(13)
    mixed = draw_requests(collection, rng.choice(SIZES, arguments.requests).tolist())
    task = {"max_length": arguments.max_length, "sample": alone[100][0], "their_port": arguments.port + 1}
    write_json(folder / "task.json", task | {"their_precision": arguments.their_precision})
    latency: dict[str, dict[int, list[float]]] = {}
    throughput: dict[str, list[float]] = {}
    difference = 0.0
    pairs = sum(len(documents) for _, documents in mixed)
    with servers(folder, arguments) as addresses:
        for address in addresses.values():
            asyncio.run(send(address, mixed[:2], 1))  # warm-up
        for number in range(arguments.rounds):
            scores: dict[str, list[np.ndarray]] = {}
            for side in sorted(addresses, reverse=number % 2 == 1):
                for size, requests in alone.items():
                    taken, _, _ = asyncio.run(send(addresses[side], requests, 1))
                    latency.setdefault(side, {}).setdefault(size, []).extend(taken)
                _, seconds, scores[side] = asyncio.run(send(addresses[side], mixed, arguments.clients))
                throughput.setdefault(side, []).append(pairs / seconds)
            difference = max(
                difference, *(float(np.abs(one - other).max()) for one, other in zip(*scores.values(), strict=True))
            )
    speed = {side: float(np.median(rates)) for side, rates in throughput.items()}
    report(path, latency, speed, offline(folder, mixed, arguments.precision), arguments)
    print(f"\nlargest difference of two scores {difference:.1e}")
    return difference


def report(
    path: Path,
    latency: dict[str, dict[int, list[float]]],
    speed: dict[str, float],
    alone: float,
    arguments: argparse.Namespace,
) -> None:
    """Print a row for each server."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    print(f"\n{path.name}, {arguments.shape}: {arguments.requests} requests, {arguments.rounds} rounds, {cores} cores")
    print(f"p50 / p95 in ms with one client; pairs/s with {arguments.clients} clients; the model alone {alone:.1f}\n")
    names = ["", *(f"{size} documents" for size in SIZES), "pairs/s", "ours / theirs", "of the model alone"]
    print(f"| {' | '.join(names)} |\n| --- |{' ---: |' * (len(names) - 1)}")
    for side, by_size in latency.items():
        cells = [side]
        for taken in by_size.values():
            middle, high = 1000 * np.percentile(taken, [50, 95])
            cells.append(f"{middle:.0f} / {high:.0f}")
        cells += [f"{speed[side]:.1f}", f"{speed['ours'] / speed[side]:.2f}"]
        cells += [f"{speed[side] / alone:.2f}" if side == "ours" else ""]
        print(f"| {' | '.join(cells)} |")


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("collections", type=Path, nargs="*", metavar="PATH", help="folders in BEIR layout")
    parser.add_argument("--requests", type=int, default=40, help="requests of each size, and of mixed sizes")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--max-length", type=int, default=256, help=f"tokens of a pair, {LONGEST} at most")
    parser.add_argument(
        "--precision", choices=["fp32", "bf16", "fp16", "auto"], default="fp32", help="precision of ours"
    )
    parser.add_argument("--their-precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--port", type=int, default=8123, help="port of ours; theirs is the next one")
    arguments = parse(parser, ["sentence-transformers"])
    if arguments.side:
        serve_theirs(arguments.folder)
        return
    if not arguments.collections:
        parser.error("give at least one collection in BEIR layout")
    for path in arguments.collections:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            save_base(arguments.shape, folder / "base", arguments.max_length)
            difference = compare(path, folder, arguments)
        if arguments.precision == arguments.their_precision == "fp32" and not difference <= SAME:
            raise SystemExit(f"bench_serve: float32 scores differ by more than {SAME:.0e}")


if __name__ == "__main__":
    main()
