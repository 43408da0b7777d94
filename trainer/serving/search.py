"""The route `/search`: a query on the corpus of a run, by its own first stage and the model."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from trainer.model.calibration import SIGMOID
from trainer.serving.batching import Batcher, Scored, Texts
from trainer.serving.bodies import Count, ErrorBody, Query
from trainer.serving.corpus import Corpus, Found
from trainer.serving.measures import Measures
from trainer.serving.scoring import ERRORS, score_texts, unless_disconnected
from trainer.serving.settings import RefusedError

MOST = 64  # waiting searches; each takes milliseconds to a second in the first stage
NO_CORPUS = (
    "this server has a model but no corpus; start it with the folder of a run (reranker serve runs/NAME), or send the "
    "documents to /rerank"
)
MISSING = {404: {"model": ErrorBody, "description": "The server has no corpus"}}


class SearchBody(BaseModel):
    """The request body of `/search`."""

    query: Query
    top_k: Count | None = Field(None, description="Number of results; 0 and null: all that are reranked")
    raw_scores: bool | None = Field(None, description="Return the final scores, not their sigmoid")


class Hit(BaseModel):
    """One document of the corpus, with its ranks before and after reranking."""

    rank: int
    first_stage_rank: int
    id: str
    relevance_score: float
    first_stage_score: float
    text: str


class SearchAnswer(BaseModel):
    """The response of `/search`, best first; `fused` says whether the scores contain the first stage's."""

    model: str
    query: str
    documents: int
    fused: bool
    results: list[Hit]


def add_search(app: FastAPI, batcher: Batcher, measures: Measures, corpus: Corpus | None) -> None:
    """Add the route; without a corpus it answers 404."""
    first_stage = FirstStage(corpus) if corpus else None

    @app.post("/search", responses=ERRORS | MISSING | {200: {"model": SearchAnswer}}, response_model=None)
    async def search(request: Request, body: SearchBody) -> JSONResponse:
        """Search the corpus of the run, and rerank what its first stage finds."""
        if first_stage is None:
            raise RefusedError(404, "Validation", NO_CORPUS)
        if not body.query.strip():
            raise RefusedError(400, "Empty", "query must not be empty or only whitespace")
        found = await unless_disconnected(request, first_stage.search(body.query))
        scored = await score_texts(request, batcher, measures, Texts([body.query], found.texts)) if found.ids else None
        return JSONResponse(_answer(body, found, scored, batcher, first_stage.corpus.documents))


def _answer(
    body: SearchBody, found: Found, scored: Scored | None, batcher: Batcher, documents: int
) -> dict[str, object]:
    fusion = batcher.engine.fusion
    final = found.fused(scored.logits, fusion) if scored else found.scores
    public = (final if body.raw_scores else SIGMOID.probability(final)).tolist()
    return {
        "model": batcher.engine.name,
        "query": body.query,
        "documents": documents,
        "fused": fusion is not None,
        "results": found.results(final, public, body.top_k or None),
    }


class FirstStage:
    """The first stage in a thread of its own, one query at a time; further queries wait."""

    def __init__(self, corpus: Corpus) -> None:
        self.corpus = corpus
        self._thread = ThreadPoolExecutor(1, "search")
        self._waiting = 0

    async def search(self, query: str) -> Found:
        """Return the candidates of a query; raise RefusedError with 429 if too many searches wait."""
        if self._waiting >= MOST:
            sentence = f"{self._waiting} searches are waiting; try again later"
            raise RefusedError(429, "Overloaded", sentence, {"Retry-After": "1"})
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self.corpus.search, query)
        finally:
            self._waiting -= 1
