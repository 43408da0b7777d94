"""Put the server under load: many clients at once, odd requests, and SIGTERM while requests are open.

    python scripts/stress_serve.py                             # 200 clients for a minute
    python scripts/stress_serve.py --clients 20 --seconds 5

`reranker serve` runs in a process of its own with a tiny random model, an API key and a limit on waiting documents that
the load exceeds now and then. Each client sends a request drawn from a pool, waits for its response and sends the next.
Every response is compared with the scores that `Reranker` gives to the texts of this request, so responses that are
mixed up are found. Refusals with 429 count as answers if they have `Retry-After`.

The odd requests have the responses that docs/serving.md promises. After SIGTERM every request that the server's log
has must have arrived at its client. The exit code is 1 if anything differs, or if memory grows by more than 10 %.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import psutil
from gpu_models import save_classifier, words

KEY = "stress-key"
POOL = 300  # requests
MOST_DOCUMENTS = 20  # in one of them
WAITING = 1500  # --max-waiting: less than 200 clients send when all of them draw a large request
SAME = 1e-6
GROWTH = 1.1
WARM_SECONDS = 5  # of load after the odd requests, before memory is measured
MIB = 1 << 20
HEAD = f"Host: x\r\nAuthorization: Bearer {KEY}\r\n"
JSON = "Content-Type: application/json\r\n"


class Asked(NamedTuple):
    """A request of the pool, with the scores of its documents."""

    query: str
    documents: list[str]
    scores: np.ndarray


class Server(NamedTuple):
    """A running server: its process, address and log file."""

    process: subprocess.Popen[bytes]
    address: str
    log: Path

    def resident(self) -> float:
        """Return the resident memory in MiB."""
        return psutil.Process(self.process.pid).memory_info().rss / MIB


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """Run the server with the model in the folder."""
    log = folder.with_name("log.jsonl")
    start = "from trainer.__main__ import reranker; reranker()"
    options = ["--port", "0", "--max-waiting", str(WAITING)]
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-u", "-c", start, "serve", str(folder), *options],
            stdout=out,
            env=os.environ | {"RERANKER_API_KEY": KEY},
        )
        try:
            yield Server(process, _address(process, log), log)
        finally:
            process.kill()
            process.wait()


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    """Wait until the server shows its address, and return it."""
    while process.poll() is None:
        if found := re.search(r"http://127\.0\.0\.1:\d+", log.read_text(encoding="utf-8")):
            return found[0]
        time.sleep(0.2)
    raise SystemExit(f"stress_serve: the server did not start: {log.read_text(encoding='utf-8')}")


def draw_pool(folder: Path) -> list[Asked]:
    """Return requests of different sizes with the scores of their documents."""
    from trainer.model import Reranker

    reranker = Reranker.load(folder, device="cpu")
    rng = np.random.default_rng(13)
    known = np.array(words())
    pool = []
    for _ in range(POOL):
        query = " ".join(rng.choice(known, 4))
        documents = [" ".join(rng.choice(known, rng.integers(1, 40))) for _ in range(rng.integers(1, MOST_DOCUMENTS))]
        logits = np.array(reranker.score([(query, document) for document in documents]), dtype=np.float64)
        pool.append(Asked(query, documents, 1 / (1 + np.exp(-logits))))
    return pool


class Load:
    """Clients that send requests until `stop`, and what they got."""

    def __init__(self, name: str, server: Server, pool: list[Asked]) -> None:
        self.name = name
        self.server = server
        self.pool = pool
        self.stop = False
        self.statuses: Counter[str] = Counter()
        self.faults: list[str] = []
        self.answered: set[str] = set()  # ids of requests that were answered in full
        self.seconds: list[float] = []

    async def run(self, clients: int, conduct: Callable[[], Any]) -> None:
        """Run the clients while `conduct` decides what happens and when they stop."""
        limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
        headers = {"Authorization": f"Bearer {KEY}"}
        async with httpx.AsyncClient(limits=limits, headers=headers, timeout=120, verify=False) as session:
            running = [asyncio.create_task(self._client(session, number)) for number in range(clients)]
            await conduct()
            await asyncio.gather(*running)

    async def _client(self, session: httpx.AsyncClient, number: int) -> None:
        rng = np.random.default_rng(number)
        sent = 0
        while not self.stop:
            name = f"{self.name}-{number}-{sent}"
            sent += 1
            asked = self.pool[rng.integers(len(self.pool))]
            started = time.perf_counter()
            try:
                answer = await session.post(f"{self.server.address}/rerank", **_request(asked, name, rng))
            except httpx.TransportError as error:
                self.statuses[type(error).__name__] += 1
                if not self.stop:
                    self.faults.append(f"{name}: {type(error).__name__}")
                continue
            self.seconds.append(time.perf_counter() - started)
            self.answered.add(answer.headers.get("x-request-id", ""))
            self.statuses[str(answer.status_code)] += 1
            await self._check(name, asked, answer)

    async def _check(self, name: str, asked: Asked, answer: httpx.Response) -> None:
        """Note a fault if a response is not that of its request; wait after a refusal."""
        if answer.status_code == 429:
            if not answer.headers.get("retry-after", "").isdecimal():
                self.faults.append(f"{name}: 429 without Retry-After")
            await asyncio.sleep(0.2)
        elif answer.status_code != 200:
            self.faults.append(f"{name}: {answer.status_code} {answer.text[:100]}")
        elif answer.headers["x-request-id"] != name or not _is_of(asked, answer.json()):
            self.faults.append(f"{name}: the response of another request")


def _request(asked: Asked, name: str, rng: np.random.Generator) -> dict[str, Any]:
    """Return the request in the form of TEI, or of the others."""
    key = "texts" if rng.integers(2) else "documents"
    return {"json": {"query": asked.query, key: asked.documents}, "headers": {"X-Request-ID": name}}


def _is_of(asked: Asked, answer: Any) -> bool:
    """Return whether the response has the scores of the request's documents, best first."""
    rows = answer if isinstance(answer, list) else answer["results"]
    scores = [row.get("score", row.get("relevance_score")) for row in rows]
    indices = [row["index"] for row in rows]
    return (
        sorted(indices) == list(range(len(asked.documents)))
        and scores == sorted(scores, reverse=True)
        and bool(np.abs(asked.scores[indices] - scores).max() <= SAME)
    )


class Odd(NamedTuple):
    """An odd request, as bytes, and the status of its response."""

    name: str
    status: int
    sent: bytes


def post(body: Any, headers: str = HEAD + JSON, length: int | None = None) -> bytes:
    """Return a request to `/rerank`, with a body of JSON or of bytes."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    size = len(content) if length is None else length
    return f"POST /rerank HTTP/1.1\r\n{headers}Content-Length: {size}\r\nConnection: close\r\n\r\n".encode() + content


def chunked(parts: bytes) -> bytes:
    """Return a request to `/rerank` with a body in chunks."""
    head = f"POST /rerank HTTP/1.1\r\n{HEAD}{JSON}Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    return head.encode() + parts


def odd_requests() -> list[Odd]:
    """Return the odd requests; docs/serving.md has the same statuses."""
    good = {"query": "a", "documents": ["b"]}
    wrong_key = "Host: x\r\nAuthorization: Bearer wrong\r\n"
    method = f" HTTP/1.1\r\n{HEAD}Connection: close\r\n\r\n"
    return [
        Odd("a good request", 200, post(good)),
        Odd("a slow client: half of a body", 408, post(b'{"query', length=100)),
        Odd("a body of 11 MiB", 413, post({"query": "a", "documents": ["b" * 11 * MIB]})),
        Odd("a body announced with 1 GiB", 413, post(b"{", length=1 << 30)),
        Odd("broken JSON", 400, post(b'{"query": ')),
        Odd("not UTF-8", 400, post(b'{"query": "\xff", "documents": ["b"]}')),
        Odd("no body", 422, post(b"")),
        Odd("10,000 documents", 422, post({"query": "a", "documents": ["b"] * 10_000})),
        Odd("no documents", 400, post({"query": "a", "documents": []})),
        Odd("an empty query", 400, post({"query": " ", "documents": ["b"]})),
        Odd("an empty document", 200, post({"query": "a", "documents": [""]})),
        Odd("a wrong key", 401, post(good, wrong_key + JSON)),
        Odd("no key", 401, post(good, "Host: x\r\n" + JSON)),
        Odd("two keys, the first one wrong", 401, post(good, wrong_key + HEAD.partition("\r\n")[2] + JSON)),
        Odd("control characters", 200, post({"query": "a\x00\x1b[0m", "documents": ["\x00", "\u202e", "\x7f"]})),
        Odd("half a surrogate pair", 422, post(b'{"query": "a", "documents": ["\\ud800"]}')),
        Odd("NaN among first-stage scores", 422, post(b'{"query":"a","documents":["b"],"first_stage_scores":[NaN]}')),
        Odd(
            "NaN in a document", 422, post(b'{"query":"a","documents":[{"text":"b","c":NaN}],"return_documents":true}')
        ),
        Odd("a number as query", 422, post({"query": 5, "documents": ["b"]})),
        Odd("a list as body", 422, post([good])),
        Odd("keys in other scripts", 200, post(good | {"ключ": 1, "\x00": 2, "": 3})),
        Odd("1,000 equal documents", 200, post({"query": "a", "documents": ["b"] * 1000, "top_n": 0})),
        Odd("a number of 5,000 digits", 400, post(b'{"query":"a","documents":["b"],"top_n":' + b"9" * 5000 + b"}")),
        Odd("100,000 brackets", 400, post(b"[" * 100_000)),
        Odd("a form", 415, post(b"query=a", HEAD + "Content-Type: application/x-www-form-urlencoded\r\n")),
        Odd("a compressed body", 415, post(good, HEAD + JSON + "Content-Encoding: gzip\r\n")),
        Odd("two lengths", 400, post(good, HEAD + JSON + "Content-Length: 3\r\n")),
        Odd("length and chunks", 400, post(good, HEAD + JSON + "Transfer-Encoding: chunked, gzip\r\n")),
        Odd("a length of -1", 400, post(good, HEAD + JSON, length=-1)),
        Odd("broken chunks", 400, chunked(b"zz\r\n")),
        Odd(
            "a body in chunks",
            200,
            chunked(b"%x\r\n%s\r\n0\r\n\r\n" % (len(json.dumps(good)), json.dumps(good).encode())),
        ),
        Odd("HTTP/1.0", 200, post(good).replace(b"HTTP/1.1", b"HTTP/1.0")),
        Odd("a header of 1 MiB", 400, post(good, HEAD + JSON + f"X: {'a' * MIB}\r\n")),
        Odd(
            "TLS on a port without TLS",
            400,
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 64 + b"\r\n\r\n",
        ),
        Odd("an unknown path", 404, f"GET /nope{method}".encode()),
        Odd("GET where POST is meant", 405, f"GET /rerank{method}".encode()),
        Odd("OPTIONS", 405, f"OPTIONS /rerank{method}".encode()),
        Odd("HEAD where POST is meant", 405, f"HEAD /rerank{method}".encode()),
        Odd("HEAD of a probe", 200, f"HEAD /health{method}".encode()),
        Odd("an unknown method", 405, f"BREW /rerank{method}".encode()),
    ]


async def status_of(server: Server, odd: Odd) -> int:
    """Return the status of a request's response; 0 if there is none. Wait and repeat while the server is full."""
    while (status := await _status_once(server, odd)) == 429:
        await asyncio.sleep(1)
    return status


async def _status_once(server: Server, odd: Odd) -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(server.address.rpartition(":")[2]))
    try:
        writer.write(odd.sent)
        line = await asyncio.wait_for(reader.readline(), 90)
        return int(line.split()[1]) if line.startswith(b"HTTP/") else 0
    except (ConnectionError, asyncio.TimeoutError):
        return 0
    finally:
        writer.close()


async def send_odd(server: Server) -> list[str]:
    """Send all odd requests at once; return a line for each unexpected response."""
    odd = odd_requests()
    found = await asyncio.gather(*(status_of(server, one) for one in odd))
    for one, status in zip(odd, found, strict=True):
        print(f"| {one.name} | {one.status} |{'' if status == one.status else f' {status} instead'}")
    return [
        f"{one.name}: {status}, not {one.status}"
        for one, status in zip(odd, found, strict=True)
        if status != one.status
    ]


async def steady(server: Server, pool: list[Asked], clients: int, seconds: float) -> list[str]:
    """Load the server with odd requests in between; print what was measured, and return the faults."""
    load, resident, faults = Load("steady", server, pool), [], []

    async def conduct() -> None:
        resident.append(server.resident())
        faults.extend(await send_odd(server))
        await asyncio.sleep(WARM_SECONDS)
        resident.append(server.resident())
        await asyncio.sleep(seconds)
        load.stop = True

    await load.run(clients, conduct)
    resident.append(server.resident())
    middle, high = np.percentile(load.seconds, [50, 95])
    print(f"\n{clients} clients, {seconds:g} seconds: {dict(load.statuses)}, {len(load.faults)} faults")
    print(f"seconds of a request: p50 {middle:.2f}, p95 {high:.2f}; {_memory(resident)}")
    if resident[2] > GROWTH * resident[1]:
        faults.append(f"memory grew: {_memory(resident)}")
    return faults + load.faults


def _memory(resident: list[float]) -> str:
    idle, warm, after = (f"{size:.0f}" for size in resident)
    return f"resident MiB: {idle} idle, {warm} after the odd requests, {after} at the end"


async def end(server: Server, pool: list[Asked], clients: int) -> list[str]:
    """Stop the server with SIGTERM while requests are open; return the faults."""
    load = Load("end", server, pool)

    async def conduct() -> None:
        while len(load.seconds) < clients and server.process.poll() is None:  # until all have connected
            await asyncio.sleep(0.1)
        load.stop = True
        server.process.send_signal(signal.SIGTERM)

    await load.run(clients, conduct)
    code = await asyncio.to_thread(server.process.wait, 90)
    lines = [json.loads(line) for line in server.log.read_text(encoding="utf-8").splitlines() if line.startswith("{")]
    logged = {line["id"] for line in lines if line["id"].startswith(f"{load.name}-")}
    lost = logged - load.answered
    arrived = f"{len(logged) - len(lost)} of {len(logged)} logged responses arrived"
    print(f"\nSIGTERM under load: {dict(load.statuses)}, exit code {code}, {arrived}")
    faults = [f"exit code {code}"] if code else []
    return faults + load.faults + [f"{name}: logged, but not received" for name in sorted(lost)]


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "model"
        save_classifier("minilm", True, "cpu", folder)
        pool = draw_pool(folder)
        with serving(folder) as server:
            faults = asyncio.run(steady(server, pool, arguments.clients, arguments.seconds))
            faults += asyncio.run(end(server, pool, arguments.clients))
    if faults:
        raise SystemExit("\n".join(["stress_serve:", *faults[:20]]))


if __name__ == "__main__":
    main()
