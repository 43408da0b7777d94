"""Servers on loopback that answer as rerank servers and OpenAI-compatible language models do, deterministically."""

import hashlib
import json
import math
import multiprocessing
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

CONCURRENCY = 3  # of `score_all`
Reply = tuple[int, Any]  # a status, and what is sent: JSON content, or text as it is


def number_of(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def logit_of(query: str, document: str) -> float:
    """The logit of a reranker that prefers documents with the query's words."""
    shared = set(query.lower().split()) & set(document.lower().split())
    return len(shared) - 2 + number_of(f"{query} {document}") / 2**33


class Loopback:
    """A server whose replies are computed from the request; `trouble(texts, attempt)` may put another in their place.

    `scored` counts the answers for each pair of texts, `attempts` the requests for each list of pairs.
    """

    def __init__(self) -> None:
        self.trouble: Callable[[tuple[str, ...], int], Reply | None] = lambda texts, attempt: None
        self.reply_headers: dict[str, str] = {}
        self.delay = 0.0
        self.requests: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.attempts: Counter[tuple[str, ...]] = Counter()
        self.scored: Counter[tuple[str, str]] = Counter()
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()
        self.url = ""

    def pairs(self, body: dict[str, Any]) -> list[tuple[str, str]]:
        """The pairs of texts that a request asks for."""
        raise NotImplementedError

    def reply(self, path: str, body: dict[str, Any]) -> Reply:
        """What a server that works replies."""
        raise NotImplementedError

    def respond(self, path: str, headers: dict[str, str], body: dict[str, Any]) -> Reply:
        texts = tuple(text for pair in self.pairs(body) for text in pair)
        with self.lock:
            self.requests.append((path, headers, body))
            self.attempts[texts] += 1
            attempt = self.attempts[texts]
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        time.sleep(self.delay)
        with self.lock:
            self.at_once -= 1
        status, content = self.trouble(texts, attempt) or self.reply(path, body)
        if status == 200:
            with self.lock:
                self.scored.update(self.pairs(body))
        return status, content


class RerankServer(Loopback):
    """A rerank server that has one form: `texts` (TEI), `documents` (Cohere, Jina, vLLM), `data` (Voyage), `score`."""

    def __init__(self, form: str = "texts") -> None:
        super().__init__()
        self.form = form
        self.logit = logit_of
        self.sigmoid = True  # unless logits are asked for

    def pairs(self, body: dict[str, Any]) -> list[tuple[str, str]]:
        query = body.get("query") or body.get("queries") or ""
        return [(query, document) for document in body.get("texts") or body.get("documents") or []]

    def reply(self, path: str, body: dict[str, Any]) -> Reply:
        wanted = {"texts": "texts", "score": "queries"}.get(self.form, "documents")
        if wanted not in body:
            return 422, {"error": f"missing field {wanted}", "error_type": "Validation"}
        raw = body.get("raw_scores") or not self.sigmoid
        logits = [self.logit(*pair) for pair in self.pairs(body)]
        scores = [logit if raw else 1 / (1 + math.exp(-logit)) for logit in logits]
        rows = sorted(enumerate(scores), key=lambda row: -row[1])
        if self.form == "texts":
            return 200, [{"index": index, "score": score} for index, score in rows]
        if self.form == "score":
            data = [{"index": index, "object": "score", "score": score} for index, score in enumerate(scores)]
            return 200, {"data": data, "usage": {"total_tokens": 7 * len(scores)}}
        results = [{"index": index, "relevance_score": score} for index, score in rows]
        return 200, {"data" if self.form == "data" else "results": results, "usage": {"total_tokens": 7 * len(scores)}}


class GradeServer(Loopback):
    """A language model that grades; `grade(query, document)` is the text of its answer."""

    def __init__(self) -> None:
        super().__init__()
        self.grade: Callable[[str, str], str] = lambda query, document: str(
            min(3, round(logit_of(query, document)) + 2)
        )
        self.chances: Callable[[str, str], dict[str, float]] | None = None  # probabilities of tokens, if it has them
        self.refused: tuple[str, ...] = ()  # parameters that it does not know

    def pairs(self, body: dict[str, Any]) -> list[tuple[str, str]]:
        content = json.loads(body["messages"][-1]["content"])
        return [(content["query"], content["document"])]

    def reply(self, path: str, body: dict[str, Any]) -> Reply:
        if unknown := [name for name in self.refused if name in body]:
            return 400, {"error": {"message": f"Unsupported parameter: '{unknown[0]}'", "code": "unsupported"}}
        (pair,) = self.pairs(body)
        text = self.grade(*pair)
        choice: dict[str, Any] = {
            "index": 0,
            "finish_reason": "stop",
            "message": {"role": "assistant", "content": text},
        }
        if self.chances and body.get("logprobs"):
            top = [{"token": token, "logprob": math.log(chance)} for token, chance in self.chances(*pair).items()]
            choice["logprobs"] = {"content": [{"token": text, "logprob": -0.1, "top_logprobs": top}]}
        usage = {"prompt_tokens": 40, "completion_tokens": 1, "total_tokens": 41}
        answer = {"id": "1", "object": "chat.completion", "created": 1, "model": body["model"]}
        return 200, answer | {"choices": [choice], "usage": usage}


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed, or that gave up, is no error of the server."""


@contextmanager
def served(server: Any) -> Iterator[Any]:
    """Serve on a free port of loopback, and set the address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:  # noqa: N802 the name that the library calls
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            headers = {name.lower(): value for name, value in self.headers.items()}
            status, content = server.respond(self.path, headers, body)
            text = (content if isinstance(content, str) else json.dumps(content)).encode()
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", **server.reply_headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, format: str, *args: Any) -> None:
            del format, args

    http = _Quiet(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    server.url = f"http://127.0.0.1:{http.server_address[1]}"
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()


def score_all(reference: str, folder: Path, pairs: list[tuple[str, str]]) -> None:
    """Score pairs by an endpoint, in a process that may be killed."""
    from trainer.endpoints import PairScorer, Service, store_of
    from trainer.recipe import CHAT, RERANK, Endpoints, read_endpoint

    endpoint = read_endpoint(reference, (CHAT, RERANK))
    section = Endpoints(concurrency=CONCURRENCY, documents_per_request=4)
    service, store = Service(endpoint, "mine.teacher"), store_of(folder, endpoint.kind)
    PairScorer(service, store, section, "mine", lambda missing: None)(pairs)


def without_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten waits that tests need not sit through."""
    from trainer.endpoints import sender, service

    monkeypatch.setattr(sender, "FIRST_PAUSE", 0.005)
    monkeypatch.setattr(service, "TIMEOUT", 20.0)


def forking(monkeypatch: pytest.MonkeyPatch, *modules: str) -> Any:
    """A context of multiprocessing whose processes begin with the modules imported."""
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)  # else each process would import pytest
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(modules))
    return context


def kill_after(
    context: Any, work: Callable[[], object], sent: Callable[[], int], goal: int, rng: np.random.Generator
) -> bool:
    """Start the work in a process, and kill it at a random moment after the server has sent `goal` answers.

    Return whether it was killed; work that is nearly done may end before.
    """
    process = context.Process(target=work)
    process.start()
    while sent() < goal and process.is_alive():
        time.sleep(0.002)
    time.sleep(rng.uniform(0, 0.05))
    process.kill()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    time.sleep(0.2)  # requests that were on their way have reached the server
    return process.exitcode != 0
