"""Serve the model of a run or model folder; on shutdown accepted requests are still answered."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from contextlib import ExitStack
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from trainer.errors import ServeError, TrainerError
from trainer.runtime import console

if TYPE_CHECKING:
    from fastapi import FastAPI

    from trainer.serving.corpus import Corpus
    from trainer.serving.settings import Settings

KEY = "RERANKER_API_KEY"
PACKAGES = ("fastapi", "uvicorn", "prometheus_client")  # of the extra `serve`
GRACE = 60  # seconds after SIGTERM in which accepted requests are answered
BACKLOG = 2048  # most connections waiting to be accepted
KEEP_ALIVE = 75  # seconds that an idle connection stays open: longer than most proxies reuse one


def require_packages() -> None:
    """Raise ServeError if the extra `serve` is not installed."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise ServeError(f"serve: {', '.join(missing)} not installed; pip install 'domain-reranker[serve]'")


def api_key() -> str | None:
    """Return the API key from the environment, None if it is not set; raise ServeError if it is invalid."""
    key = os.environ.get(KEY)
    if key is not None and (not key.isascii() or not key.isprintable() or key != key.strip() or not key):
        raise ServeError(
            f"serve: {KEY} is empty or has characters that an HTTP header cannot contain; change it or unset it"
        )
    return key


def model_folder(reference: str) -> tuple[str, str]:
    """Return the model to load and its public name: for a run folder its exported model and the run's name."""
    folder = Path(reference)
    exported = folder / "export" / "model"
    if exported.is_dir():
        return str(exported), folder.resolve().name
    if (folder / "export").is_dir() or (folder / "mine").is_dir():
        raise ServeError(
            f"serve: {reference} has no exported model; finish the run (train RECIPE), or give a model folder"
        )
    if not folder.is_dir():
        return reference, reference
    inside = folder.resolve()
    return reference, inside.parents[1].name if inside.parts[-2:] == ("export", "model") else inside.name


def listen_at(host: str, port: int) -> socket.socket:
    """Return a bound socket that does not listen yet; raise ServeError if the address cannot be used."""
    with ExitStack() as opened:
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            bound = opened.enter_context(socket.socket(family, kind, protocol))
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
        except (OSError, UnicodeError) as error:
            reason = (isinstance(error, OSError) and error.strerror) or error
            wanted = f"{host}:{port}"
            raise ServeError(f"serve: cannot listen on {wanted}: {reason}; choose another --host or --port") from None
        opened.pop_all()
        return bound


def serve(
    reference: str,
    host: str,
    port: int,
    settings: Settings,
    precision: Literal["fp32", "bf16", "fp16", "auto"] = "fp32",
    trust_remote_code: bool = False,
    engine: Literal["torch", "onnx", "onnx-fused", "onnx-int8", "auto"] = "torch",
) -> None:
    """Load the model and serve it until SIGTERM or Ctrl-C; accepted requests are answered before the end.

    The corpus of a run is served too, unless `settings.search` is off. Raise ServeError or ModelError before the start.
    """
    from trainer.model import Reranker
    from trainer.serving.app import create_app
    from trainer.serving.engine import Engine

    if engine.startswith("onnx") and precision in ("bf16", "fp16"):
        raise ServeError(f"serve: --engine {engine} has a precision of its own; leave out --precision {precision}")
    folder, name = model_folder(reference)
    with listen_at(host, port) as bound:
        reranker = Reranker.load(
            folder, head="trained", precision=precision, engine=engine, trust_remote_code=trust_remote_code
        )
        corpus = _corpus(Path(reference), trust_remote_code) if settings.search else None
        app = create_app(Engine(reranker, name), settings, corpus)
        _log_to_stdout()
        bound.listen(BACKLOG)
        _show_address(bound, name, settings)
        _run(app, bound)
    if unfinished := app.state.measures.unfinished:
        console.warn(
            "serve", f"stopped before {unfinished} accepted requests were computed; they were answered with 503"
        )
    else:
        console.stage("serve", "stopped; all accepted requests are answered")


def _corpus(run: Path, trust_remote_code: bool) -> Corpus | None:
    """Return the corpus of a run folder; None for a model folder, and with a warning for an incomplete run."""
    from trainer.serving.corpus import Corpus

    if not (run / "export" / "model").is_dir():
        return None
    try:
        corpus = Corpus.open(run, trust_remote_code)
    except TrainerError as error:
        console.warn("serve", f"{'; '.join(error.faults)}; /search is not available")
        return None
    console.stage("serve", f"/search reranks the first {corpus.depth} of {corpus.documents:,} documents")
    return corpus


def _run(app: FastAPI, bound: socket.socket) -> None:
    """Serve until SIGTERM or SIGINT, then answer the accepted requests."""
    import uvicorn

    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="on",
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=GRACE,
    )
    for number in (signal.SIGTERM, signal.SIGINT):  # uvicorn raises the signal again after its graceful shutdown
        signal.signal(number, lambda *_: None)
    server = uvicorn.Server(config)
    app.state.measures.is_stopping = lambda: server.should_exit
    server.run(sockets=[bound])


def _show_address(bound: socket.socket, name: str, settings: Settings) -> None:
    host, port = bound.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    key = "with an API key" if settings.key else "without an API key"
    console.stage("serve", f"{name} on http://{shown}:{port}/ {key}; press Ctrl-C to stop")
    if not settings.key and not ip_address(host.partition("%")[0]).is_loopback:
        console.warn("serve", f"everyone who can connect to {host} can use this server; set {KEY} to require a key")


def _log_to_stdout() -> None:
    """Write the access log and uvicorn's warnings to stdout."""
    for name, level in (("trainer.serving.access", logging.INFO), ("uvicorn.error", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.setLevel(level)
        logger.addHandler(logging.StreamHandler(sys.stdout))
        logger.propagate = False
