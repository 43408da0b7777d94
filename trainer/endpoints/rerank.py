"""Requests to rerank servers: Cohere, Jina, Voyage, Text Embeddings Inference (TEI), vLLM, Infinity, our own.

Three forms cover them. The route says which one a server has, except for `/rerank` alone, which most of them have:
there the form is tried once.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from urllib.parse import urlsplit

import numpy as np

from trainer.endpoints.store import Answer
from trainer.recipe import Endpoint
from trainer.runtime.run_folder import json_sha256

if TYPE_CHECKING:
    import openai

Form = Literal["texts", "documents", "score"]
FORMS: Mapping[Form, str] = {
    "texts": "Text Embeddings Inference (`texts`)",
    "documents": "Cohere, Jina, Voyage and vLLM (`documents`)",
    "score": "vLLM's score route (`queries`)",
}
ROUTES = ("rerank", "reranking", "score", "invocations")  # with which an address is complete
VERSIONS = ("v1", "v2", "v3")  # of Cohere's API; a route below one of them has `documents`
DOCUMENT_CHARACTERS = 20_000  # of a document that are sent: more than any reranker here reads
CHARACTERS_PER_TOKEN = 4  # where a server counts no tokens
LARGEST_LOGIT = 36.0  # beyond which a sigmoid is 0 or 1 in float64


class RerankRequest(NamedTuple):
    """A query with its documents, in one of the forms."""

    endpoint: Endpoint
    form: Form
    query: str
    documents: tuple[str, ...]

    @property
    def keys(self) -> tuple[str, ...]:
        """One key for each document."""
        return tuple(pair_key(self.endpoint, self.query, document) for document in self.documents)

    @property
    def extras(self) -> Mapping[str, Any]:
        """No parameter can be left out."""
        return {}

    def send(self, client: openai.OpenAI, unknown: Collection[str]) -> dict[str, Answer]:
        """Return the score of each document as an answer, by its key.

        Raise ValueError, TypeError, AttributeError or LookupError unless there is one finite score for each.
        """
        del unknown
        response: Any = client.post(address(self.endpoint), body=self._body(), cast_to=object)
        scores = _scores(response, len(self.documents))
        tokens = _tokens(response) or sum(map(len, (self.query, *self.documents))) // CHARACTERS_PER_TOKEN
        each = [tokens // len(scores) + (index < tokens % len(scores)) for index in range(len(scores))]
        answers = (Answer(repr(score), self.form, number, 0, 0.0) for score, number in zip(scores, each, strict=True))
        return dict(zip(self.keys, answers, strict=True))

    def _body(self) -> dict[str, Any]:
        model = {"model": self.endpoint.model} if self.endpoint.model else {}
        documents = list(self.documents)
        if self.form == "texts":
            return {"query": self.query, "texts": documents, "raw_scores": True, "truncate": True}
        if self.form == "score":
            return {**model, "queries": self.query, "documents": documents}
        return {**model, "query": self.query, "documents": documents}


def pair_key(endpoint: Endpoint, query: str, document: str) -> str:
    """Return the key of a pair's score, which depends on the model's name, or on the address if it has none."""
    return json_sha256("rerank", endpoint.identity, query, document)


def address(endpoint: Endpoint) -> str:
    """Return the address that requests are sent to: that of the recipe, with `/rerank` if it names no route."""
    route = urlsplit(endpoint.url).path.rpartition("/")[2]
    return endpoint.url if route in ROUTES else f"{endpoint.url}/rerank"


def form_of(endpoint: Endpoint) -> Form | None:
    """Return the form that the route says, None if it has to be tried."""
    *before, route = urlsplit(address(endpoint)).path.strip("/").split("/")
    if route == "score":
        return "score"
    return "documents" if before and before[-1] in VERSIONS else None


def logits_of(answers: Sequence[Answer | None]) -> np.ndarray:
    """Return the scores (answers,) float32 as logits, NaN for None.

    TEI is asked for logits. Other servers return logits or their sigmoid; scores that are all from 0 to 1 are taken
    for sigmoids.
    """
    scores = np.array([math.nan if answer is None else float(answer.text) for answer in answers], dtype=np.float64)
    other = np.array([answer is not None and answer.ending != "texts" for answer in answers], dtype=bool)
    if other.any() and ((scores[other] >= 0) & (scores[other] <= 1)).all():
        with np.errstate(divide="ignore"):
            logits = np.log(scores[other]) - np.log1p(-scores[other])
        scores[other] = np.clip(logits, -LARGEST_LOGIT, LARGEST_LOGIT)
    return scores.astype(np.float32)


def _scores(response: Any, count: int) -> list[float]:
    """Return the score of each document in the order of the request."""
    rows = response
    if isinstance(response, Mapping):
        rows = next((response[key] for key in ("results", "data") if isinstance(response.get(key), list)), None)
    if not isinstance(rows, list):
        raise TypeError("the response has no list of scores")
    found: dict[int, float] = {}
    for row in rows:
        index, score = row["index"], row.get("relevance_score", row.get("score"))
        if type(index) is not int or type(score) not in (int, float) or not math.isfinite(score):
            raise ValueError("a score or its index is not a number")
        found[index] = float(score)
    if len(rows) != count or found.keys() != set(range(count)):
        raise ValueError(f"the response has {len(rows)} scores for {count} documents")
    return [found[index] for index in range(count)]


def _tokens(response: Any) -> int:
    """Return the number of tokens that the server counted, 0 if it counts none."""
    usage = response.get("usage") if isinstance(response, Mapping) else None
    counted = usage.get("total_tokens") if isinstance(usage, Mapping) else None
    return counted if type(counted) is int and counted > 0 else 0
