"""The routes of the server and their error responses."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from starlette.exceptions import HTTPException
from starlette.routing import Route

from trainer.serving.batching import Batcher
from trainer.serving.bodies import RankedText, RerankAnswer, RerankBody, ScoreAnswer, ScoreBody
from trainer.serving.corpus import Corpus
from trainer.serving.engine import Engine
from trainer.serving.guard import Guard, refusal
from trainer.serving.measures import Measures
from trainer.serving.page import PAGE, POLICY
from trainer.serving.protocol import (
    DocumentShape,
    fusion_of,
    public_scores_of,
    rerank_answer,
    score_answer,
    text_answer,
    texts_to_rank,
    texts_to_score,
)
from trainer.serving.scoring import ERRORS, score_texts
from trainer.serving.search import add_search
from trainer.serving.settings import RefusedError, Settings

MOST_ERRORS = 5  # reported for one body
REASONS = {
    400: "the body is not JSON in UTF-8, is nested too deeply, or has a number with too many digits",
    404: "unknown path; this server answers /rerank, /v1/rerank, /v2/rerank, /score and the paths in /openapi.json",
}
Answering = Callable[[], Awaitable[Any]]
UNAVAILABLE: dict[int | str, dict[str, Any]] = {503: {"description": "Not available now"}}


def create_app(engine: Engine, settings: Settings, corpus: Corpus | None = None) -> FastAPI:
    """Return the ASGI application of one model; its batcher runs during the application's lifespan.

    With the corpus of a run, `/search` answers queries with its first stage and the model.
    """
    measures = Measures()
    batcher = Batcher(engine, settings, measures)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with batcher.running():
            yield

    # FastAPI's documentation pages load scripts from another host, so they are disabled. A redirect from `/rerank/`
    # would name this server's own scheme and port, which are wrong behind a proxy.
    app = FastAPI(
        title="domain-reranker",
        version=_version(),
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
    )
    app.state.batcher = batcher
    app.state.measures = measures
    app.add_middleware(Guard, settings=settings, measures=measures)
    _add_error_handlers(app)
    _add_rerank(app, batcher, settings, measures)
    _add_score(app, batcher, settings, measures)
    add_search(app, batcher, measures, corpus)
    _add_operations(app, batcher, settings, measures, corpus)
    if settings.page:
        _readable(app, "/", include_in_schema=False)(_page)
    return app


def _readable(app: FastAPI, path: str, **options: Any) -> Callable[[Answering], Answering]:
    """Return a decorator that adds a route for GET, and for HEAD with the same headers."""

    def add(answer: Answering) -> Answering:
        app.head(path, include_in_schema=False)(answer)
        return app.get(path, **options)(answer)

    return add


def _add_error_handlers(app: FastAPI) -> None:
    """Answer every error with a body that the clients of all protocols understand."""

    @app.exception_handler(RefusedError)
    async def refuse(request: Request, refused: RefusedError) -> JSONResponse:
        return refusal(refused, request.scope["path"])

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return refusal(refused_body(error.errors()), request.scope["path"])

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        sentence = REASONS.get(error.status_code, str(error.detail))
        headers = dict(error.headers or {})
        if error.status_code == 405:  # the router names the methods of the first route with this path
            headers["Allow"] = ", ".join(sorted(_methods(app, request.scope["path"])))
        return refusal(RefusedError(error.status_code, "Validation", sentence, headers))

    @app.exception_handler(Exception)
    async def unexpected(_: Request, error: Exception) -> JSONResponse:
        return refusal(
            RefusedError(500, "Backend", f"internal server error: {type(error).__name__}; see the server's log")
        )


def _methods(app: FastAPI, path: str) -> set[str]:
    """Return the methods of all routes of a path."""
    return {
        method
        for route in app.routes
        if isinstance(route, Route) and route.path == path
        for method in route.methods or ()
    }


def refused_body(errors: Sequence[Any]) -> RefusedError:
    """Return the refusal of an invalid body; its message contains nothing of the body's content."""
    reasons: dict[str, list[str]] = {}
    for error in errors:
        if error["type"] == "json_invalid":
            return RefusedError(
                400, "Validation", f"the body is not JSON: {error['ctx']['error']} at {error['loc'][-1]}"
            )
        reasons.setdefault(_location(error["loc"][1:]), []).append(
            error["msg"].removeprefix("Input ").removeprefix("Value error, ")
        )
    messages = [f"{location}: {' or '.join(several)}" for location, several in reasons.items()]
    return RefusedError(422, "Validation", "; ".join(messages[:MOST_ERRORS]))


def _location(path: Sequence[str | int]) -> str:
    """Return the location of an error, e.g. `documents[3]`, without the union members that pydantic tried there."""
    if len(path) > 1 and isinstance(path[1], int):
        return f"{path[0]}[{path[1]}]"
    return str(path[0]) if path else "body"


def _add_rerank(app: FastAPI, batcher: Batcher, settings: Settings, measures: Measures) -> None:
    """Add the routes that rank documents."""

    async def rank(request: Request, body: RerankBody, shape: DocumentShape, api: str) -> JSONResponse:
        texts = texts_to_rank(body, settings.max_documents)
        public = public_scores_of(body, batcher.engine.calibration)
        fuse = fusion_of(body, len(texts.documents), batcher.engine.fusion)
        scored = await score_texts(request, batcher, measures, texts)
        final = fuse(scored.logits)
        if body.texts is not None:
            return JSONResponse(text_answer(body, texts, final, public))
        return JSONResponse(rerank_answer(body, texts, scored, final, public, batcher.engine.name, shape, api))

    answers = ERRORS | {200: {"model": RerankAnswer | list[RankedText]}}

    def add(path: str, shape: DocumentShape = "object", api: str = "2") -> None:
        async def rerank(request: Request, body: RerankBody) -> JSONResponse:
            """Order documents by their relevance for a query."""
            return await rank(request, body, shape, api)

        name = f"rerank_{path.strip('/').replace('/', '_')}"
        app.post(path, responses=answers, operation_id=name, response_model=None)(rerank)

    for path in ("/rerank", "/v2/rerank", "/invocations", "/"):
        add(path)
    add("/v1/rerank", api="1")
    add("/infinity/rerank", shape="string")


def _add_score(app: FastAPI, batcher: Batcher, settings: Settings, measures: Measures) -> None:
    """Add the routes that score pairs."""
    answers = ERRORS | {200: {"model": ScoreAnswer}}

    def add(path: str) -> None:
        async def score(request: Request, body: ScoreBody) -> JSONResponse:
            """Score documents for one query, or each document for its own query."""
            texts = texts_to_score(body, settings.max_documents)
            public = public_scores_of(body, batcher.engine.calibration)
            scored = await score_texts(request, batcher, measures, texts)
            return JSONResponse(score_answer(scored, public, batcher.engine.name))

        name = f"score_{path.strip('/').replace('/', '_')}"
        app.post(path, responses=answers, operation_id=name, response_model=None)(score)

    add("/score")
    add("/v1/score")


def _add_operations(
    app: FastAPI, batcher: Batcher, settings: Settings, measures: Measures, corpus: Corpus | None
) -> None:
    """Add the routes for operators: health, readiness, information and metrics."""

    @_readable(app, "/health", response_class=Response, responses=UNAVAILABLE)
    @_readable(app, "/ping", include_in_schema=False)
    async def health() -> Response:
        """Answer 200 while the model works, 503 after repeated failures."""
        return Response(status_code=503 if batcher.broken else 200)

    @_readable(app, "/ready", response_class=Response, responses=UNAVAILABLE)
    async def ready() -> Response:
        """Answer 200 if a request would be accepted, 503 if it would be refused."""
        return Response(status_code=503 if batcher.broken or batcher.is_full else 200)

    @_readable(app, "/info", responses={401: ERRORS[401]})
    async def info() -> dict[str, Any]:
        """Return the model and the limits, in the format of TEI, where one text is one of the concurrent requests."""
        engine = batcher.engine
        return {
            "model_id": engine.name,
            "model_sha": None,
            "served_model_name": engine.name,
            "model_dtype": {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}[engine.precision],
            "model_type": {"reranker": {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}},
            "device": engine.device,
            "engine": engine.engine,
            "max_input_length": engine.max_length,
            "max_batch_tokens": batcher.tokens_per_batch,
            "max_batch_requests": None,
            "max_concurrent_requests": batcher.max_waiting,
            "max_client_batch_size": settings.max_documents,
            "max_waiting_documents": batcher.max_waiting,
            "max_body_bytes": settings.max_body,
            "auto_truncate": True,
            "search": corpus and {"documents": corpus.documents, "depth": corpus.depth},
            "probabilities": engine.calibration is not None,
            "version": _version(),
        }

    @_readable(app, "/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Return the metrics in Prometheus' text format."""
        return Response(measures.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def _page() -> HTMLResponse:
    return HTMLResponse(PAGE, headers={"Content-Security-Policy": POLICY, "Cache-Control": "no-cache"})


def _version() -> str:
    try:
        return version("domain-reranker")
    except PackageNotFoundError:  # the package is not installed
        return "0"
