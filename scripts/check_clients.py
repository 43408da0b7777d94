"""Check that real rerank clients understand the server, and get the same order as `Reranker.rank`.

    python scripts/check_clients.py ENVIRONMENTS            # a folder of virtual environments, created where missing
    python scripts/check_clients.py ENVIRONMENTS --model runs/quickstart/export/model --write tests/clients.json

The clients run in environments of their own, because their pins clash: LangChain's and LlamaIndex's packages for Cohere
need cohere 5. The server runs in this process on loopback, with an API key and a tiny random model unless `--model` is
given. For each client the table has its version, the route that it used, whether order and scores are those of
`Reranker.rank`, and the exception that it raises for each kind of refused request. `--write` stores the requests as the
clients sent them; tests/test_serving_clients.py sends them again without any client.

The exit code is 1 if a client fails or its order differs.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import socket
import subprocess
import sys
import tempfile
import threading
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from client_calls import CLIENTS
from gpu_models import save_classifier, words

from trainer.model import Reranker
from trainer.serving.app import create_app
from trainer.serving.engine import Engine
from trainer.serving.settings import Settings

REQUIREMENTS = {
    "cohere7": (
        "cohere>=7",
        "voyageai",
        "llama-index-postprocessor-tei-rerank",
        "llama-index-postprocessor-jinaai-rerank",
        "cohere-haystack",
        "huggingface-api-haystack",
        "jina-haystack",
        "rerankers[api]",
        "infinity_client",
    ),
    "cohere5": (
        "langchain-cohere",
        "langchain-community",
        "llama-index-postprocessor-cohere-rerank",
        "infinity_client",
    ),
    "litellm": ("litellm",),
    "schemathesis": ("schemathesis",),  # for check_schema.py
}
CALLS = Path(__file__).with_name("client_calls.py")
KEY = "trial-key"
TOP_N = 5
MOST = 20  # documents in a request
SAME = 1e-6  # largest difference of scores; clients keep float64, and one pair in other batches differs by about 1e-7
KEPT = ("content-type", "accept-encoding", "user-agent")  # headers that the stored requests keep
FAULTS = {  # what is wrong with the request, and the words that the client should show
    "an empty query": ({"query": " "}, "must not be empty"),
    "a wrong key": ({"key": "wrong"}, "API key is missing or wrong"),
    "too many documents": ({"documents": [f"document {row}" for row in range(MOST + 1)]}, f"more than {MOST}"),
}
Rows = list[tuple[int, float]]


class Checked(NamedTuple):
    """A row of the table, and the client's request as it was sent."""

    row: list[str]
    request: dict[str, Any]


def sample() -> dict[str, Any]:
    """Return a query with distinct documents, more of them than are asked for."""
    known = words()
    documents = [" ".join(known[17 * row + 3 : 17 * row + 6 + row]) for row in range(12)]
    return {"query": " ".join(known[5:9]), "documents": documents, "top_n": TOP_N}


class Recorder:
    """ASGI middleware that keeps each request as it was sent."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.requests: list[dict[str, Any]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass everything on; note a request with its body when its last part was read."""
        parts: list[bytes] = []

        async def noting() -> Any:
            message = await receive()
            if message["type"] == "http.request":
                parts.append(message["body"])
                if not message.get("more_body"):
                    headers = {name.decode(): value.decode() for name, value in scope["headers"]}
                    kept = {name: value for name, value in headers.items() if name in KEPT}
                    self.requests.append({"path": scope["path"], "headers": kept, "body": b"".join(parts).decode()})
            return message

        await self.app(scope, noting if scope["type"] == "http" else receive, send)


@contextmanager
def listening(app: Any) -> Iterator[str]:
    """Serve an application on loopback in another thread, and yield its address."""
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="on"))
    with socket.create_server(("127.0.0.1", 0)) as bound:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{bound.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


def python_of(folder: Path, environment: str) -> Path:
    """Return the interpreter of an environment; create the environment with the newest clients if it is missing."""
    python = folder / environment / "bin" / "python"
    if not python.exists():
        venv.create(folder / environment, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *REQUIREMENTS[environment]], check=True)
    return python


class Environment:
    """A process that calls the clients of one environment."""

    def __init__(self, python: Path) -> None:
        clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "HF_HUB_OFFLINE")}
        quiet = {"DO_NOT_TRACK": "1", "HAYSTACK_TELEMETRY_ENABLED": "False", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
        self._process = subprocess.Popen(
            [python, CALLS],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=clean | quiet,
        )

    def call(self, client: str, body: dict[str, Any]) -> dict[str, Any]:
        """Let a client send a request, and return what it returned or raised."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"client": client} | body) + "\n")
        self._process.stdin.flush()
        for line in self._process.stdout:  # some clients print
            if line.startswith('{"client"'):
                return json.loads(line)
        raise SystemExit(f"check_clients: the process of {client} stopped")

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def same(rows: Rows, expected: Rows) -> bool:
    """Return whether both have the same documents in the same order, with scores that only rounding tells apart."""
    return [index for index, _ in rows] == [index for index, _ in expected] and all(
        abs(score - wanted) <= SAME for (_, score), (_, wanted) in zip(rows, expected, strict=True)
    )


def shown(line: dict[str, Any], sentence: str) -> str:
    """Return the class of a client's exception, with a remark if its message does not have the server's sentence."""
    if "error" not in line:
        return "no error"
    name, _, message = line["error"].partition(": ")
    return name if sentence in message else f"{name} (without the sentence)"


def check(client: str, environment: Environment, recorder: Recorder, expected: Rows, address: str) -> Checked:
    """Call a client, once as it should be and once for each fault."""
    body = {"address": address, "key": KEY} | sample()
    recorder.requests.clear()
    line = environment.call(client, body)
    request = recorder.requests[-1] if recorder.requests else {"path": "none"}
    good = "rows" in line and same([(index, score) for index, score in line["rows"]], expected)
    verdict = "yes" if good else f"NO: {line.get('error', line.get('rows'))}".replace("\n", " ")
    errors = [shown(environment.call(client, body | fault), sentence) for fault, sentence in FAULTS.values()]
    version = line["version"]
    return Checked(
        [client, version, request["path"], verdict, *errors], {"client": client, "version": version} | request
    )


def check_all(address: str, recorder: Recorder, expected: Rows, folder: Path) -> list[Checked]:
    """Call all clients; return the table's rows, and each client's request as it was sent."""
    checked = {}
    for name in dict.fromkeys(client.environment for client in CLIENTS.values()):
        environment = Environment(python_of(folder, name))
        for client in CLIENTS:
            if CLIENTS[client].environment == name:
                checked[client] = check(client, environment, recorder, expected, address)
        environment.close()
    return [checked[client] for client in CLIENTS]


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("environments", type=Path, help="a folder with a virtual environment for each group of clients")
    parser.add_argument("--model", type=Path, help="a model folder; without it a tiny random model")
    parser.add_argument("--write", type=Path, help="store the requests in this file")
    arguments = parser.parse_args()
    logging.disable(logging.INFO)
    with tempfile.TemporaryDirectory() as name:
        folder = arguments.model or Path(name) / "tiny"
        if not arguments.model:
            save_classifier("minilm", True, "cpu", folder)
        reranker = Reranker.load(folder, head="trained" if arguments.model else "classifier", device="cpu")
    ranked = reranker.rank(sample()["query"], sample()["documents"], top_k=TOP_N)
    expected = [(row.index, 1 / (1 + math.exp(-row.score))) for row in ranked]
    recorder = Recorder(create_app(Engine(reranker, "trial"), Settings(key=KEY, max_documents=MOST)))
    with listening(recorder) as address:
        checked = check_all(address, recorder, expected, arguments.environments)
    names = ["client", "version", "route", "same order and scores", *FAULTS]
    for row in [names, ["---"] * len(names), *(one.row for one in checked)]:
        print(f"| {' | '.join(row)} |")
    if arguments.write:
        requests = [one.request for one in checked]
        arguments.write.write_text(json.dumps(requests, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if any(one.row[3] != "yes" for one in checked):
        sys.exit(1)


if __name__ == "__main__":
    main()
