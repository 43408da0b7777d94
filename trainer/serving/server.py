"""From a run or model folder to a server on a socket, which answers what it took before it ends."""

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

from trainer.errors import ServeError
from trainer.runtime import console

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from trainer.serving.settings import Settings

KEY = "RERANKER_API_KEY"
PACKAGES = ("fastapi", "uvicorn", "prometheus_client")  # of the extra
GRACE = 60  # seconds in which accepted requests are answered after SIGTERM
BACKLOG = 2048  # connections that wait to be accepted
KEPT_ALIVE = 75  # seconds that an idle connection stays open: longer than most proxies reuse one


def require_packages() -> None:
    """Raise ServeError where the extra `serve` is not installed."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise ServeError(f"serve: {', '.join(missing)} not installed; pip install 'domain-reranker[serve]'")


def api_key() -> str | None:
    """Return the key that clients must send, None where the variable is not set; raises ServeError for an odd one."""
    key = os.environ.get(KEY)
    if key is not None and (not key.isascii() or not key.isprintable() or key != key.strip() or not key):
        raise ServeError(
            f"serve: {KEY} is set, but empty or with characters that a header cannot hold; set or unset it"
        )
    return key


def model_folder(reference: str) -> tuple[str, str]:
    """Return what to load and its public name: of a run folder the exported model and the run's name."""
    folder = Path(reference)
    exported = folder / "export" / "model"
    if exported.is_dir():
        return str(exported), folder.resolve().name
    if (folder / "export").is_dir() or (folder / "mine").is_dir():
        raise ServeError(f"serve: {reference} holds no exported model; finish its run (train RECIPE), or name a folder")
    if not folder.is_dir():
        return reference, reference
    inside = folder.resolve()
    return reference, inside.parents[1].name if inside.parts[-2:] == ("export", "model") else inside.name


def listen_at(host: str, port: int) -> socket.socket:
    """Return a bound socket, which refuses connections until the server listens; raises ServeError."""
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
) -> None:
    """Load the model and serve it until SIGTERM or Ctrl-C; accepted requests are answered first.

    Raises ServeError and ModelError before the first request.
    """
    from trainer.model import Reranker
    from trainer.serving.app import create_app
    from trainer.serving.engine import Engine

    folder, name = model_folder(reference)
    with listen_at(host, port) as bound:
        reranker = Reranker.load(folder, head="trained", precision=precision, trust_remote_code=trust_remote_code)
        app = create_app(Engine(reranker, name), settings)
        _log_to_stdout()
        bound.listen(BACKLOG)
        _tell(bound, name, settings)
        _run(app, bound)
    console.stage("serve", "stopped; what was accepted is answered")


def _run(app: ASGIApp, bound: socket.socket) -> None:
    """Serve until a signal comes, then answer what was accepted."""
    import uvicorn

    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="on",
        timeout_keep_alive=KEPT_ALIVE,
        timeout_graceful_shutdown=GRACE,
    )
    for number in (signal.SIGTERM, signal.SIGINT):  # uvicorn raises them once more after it has ended gracefully
        signal.signal(number, lambda *_: None)
    uvicorn.Server(config).run(sockets=[bound])


def _tell(bound: socket.socket, name: str, settings: Settings) -> None:
    host, port = bound.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    key = "with a key" if settings.key else "without a key"
    console.stage("serve", f"{name} on http://{shown}:{port}/ {key}; Ctrl-C ends it")
    if not settings.key and not ip_address(host.partition("%")[0]).is_loopback:
        console.warn("serve", f"everyone who reaches {host} can use it; set {KEY}")


def _log_to_stdout() -> None:
    """Write the access log and uvicorn's errors, a line each."""
    for name, level in (("trainer.serving.access", logging.INFO), ("uvicorn.error", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.setLevel(level)
        logger.addHandler(logging.StreamHandler(sys.stdout))
        logger.propagate = False
