"""Bodies and answers of the protocols that clients speak: Cohere v1 and v2, Jina, Voyage, TEI, Infinity and vLLM.

One body holds the keys of all of them. Keys that are not listed here are ignored, and `null` means that a key was not
given. Which answer a client gets follows from its keys: `texts` is TEI, `top_k` or `truncation` is Voyage.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from math import ceil
from typing import Annotated, Any, Literal, TypeVar
from uuid import uuid4

import numpy as np
from pydantic import AfterValidator, AliasChoices, BaseModel, Field, JsonValue

from trainer.model import Fusion
from trainer.model.fusion import first_stage_numbers
from trainer.serving.batching import Scored, Texts
from trainer.serving.settings import RefusedError

T = TypeVar("T")
PER_SEARCH_UNIT = 100  # documents that Cohere counts as one
Count = Annotated[int, Field(ge=0)]
DocumentShape = Literal["object", "string"]


def require_characters(value: T) -> T:
    """Return a JSON value as it is; raises ValueError where it holds half a surrogate pair, which is no character."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("holds half a surrogate pair, as if a text was cut inside of a character") from None
    return value


Text = Annotated[str, AfterValidator(require_characters)]
Fields = Annotated[dict[str, JsonValue], AfterValidator(require_characters)]


class RerankBody(BaseModel):
    """What `/rerank`, `/v1/rerank` and `/v2/rerank` read."""

    query: Text = Field(description="Not empty", json_schema_extra={"minLength": 1})
    documents: list[Text | Fields] | None = Field(
        None, description="Texts, or objects with `text`; of other objects a line `key: value` is read for each key"
    )
    texts: list[Text] | None = Field(None, description="TEI's name for documents; the answer is TEI's array")
    model: str | None = Field(None, description="Any name; the server has one model")
    top_n: Count | None = Field(None, description="How many to return; 0 and null: all")
    top_k: Count | None = Field(None, description="Voyage's name for top_n; the answer has `data` as well")
    return_documents: bool | None = None
    return_text: bool | None = Field(None, description="TEI's name for return_documents")
    raw_scores: bool | None = Field(None, description="Return logits, not their sigmoid")
    use_activation: bool | None = Field(None, description="False, as in vLLM: the same as raw_scores")
    truncate: bool | None = Field(None, description="False: refuse a pair that is too long; else it is cut")
    truncation: bool | None = Field(None, description="Voyage's name for truncate")
    truncation_direction: Literal["right", "Right"] | None = None
    max_tokens_per_doc: Annotated[int, Field(ge=1)] | None = Field(None, description="Cut each document to these first")
    rank_fields: list[str] | None = Field(None, description="Keys of document objects that are read")
    first_stage: Literal["order"] | None = Field(
        None, description="order: the documents stand in the first stage's order, which counts too"
    )
    first_stage_scores: list[float] | None = Field(
        None, description="One number for each document, fused with the model's scores by the model's fusion.json"
    )


class ScoreBody(BaseModel):
    """What `/score` reads: one query for all documents, or as many queries as documents."""

    queries: Text | list[Text] = Field(validation_alias=AliasChoices("queries", "text_1", "data_1"))
    documents: Text | list[Text] = Field(validation_alias=AliasChoices("documents", "items", "text_2", "data_2"))
    model: str | None = None
    use_activation: bool | None = Field(None, description="False: return logits, not their sigmoid")


class RankedDocument(BaseModel):
    """One document of an answer; `document` where it was asked for."""

    index: int
    relevance_score: float
    document: JsonValue = None


class Usage(BaseModel):
    """Tokens that were computed."""

    prompt_tokens: int
    total_tokens: int


class RerankAnswer(BaseModel):
    """The answer to a body with `documents`."""

    id: str
    object: Literal["list", "rerank"]
    model: str
    results: list[RankedDocument]
    data: list[RankedDocument] | None = None
    meta: dict[str, JsonValue] | None = None
    usage: Usage
    created: int | None = None


class RankedText(BaseModel):
    """One text of TEI's answer."""

    index: int
    score: float
    text: str | None = None


class ScoreAnswer(BaseModel):
    """The answer of `/score`, in the order of the documents."""

    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[dict[str, JsonValue]]
    usage: Usage


class Fault(BaseModel):
    """The body of every error: each protocol finds the sentence where it looks for it."""

    error: str
    error_type: str
    message: str
    detail: str


def fault(refused: RefusedError) -> dict[str, str]:
    """Return the body of an error."""
    sentence = refused.sentence
    return {"error": sentence, "error_type": refused.kind, "message": sentence, "detail": sentence}


def texts_to_rank(body: RerankBody, most: int) -> Texts:
    """Return what has to be scored; raises RefusedError with 400 for what is empty and 422 for what cannot be done."""
    if (body.documents is None) == (body.texts is None):
        raise RefusedError(422, "Validation", "give either `documents` or `texts`")
    if not body.query.strip():
        raise RefusedError(400, "Empty", "query must not be empty or only whitespace")
    given = body.documents or body.texts or []
    _require_count(len(given), most, "documents" if body.texts is None else "texts")
    cut = body.truncate is not False and body.truncation is not False
    return Texts([body.query], read_documents(given, body.rank_fields), body.max_tokens_per_doc, cut)


def texts_to_score(body: ScoreBody, most: int) -> Texts:
    """Return what has to be scored; raises RefusedError as `texts_to_rank` does."""
    queries = [body.queries] if isinstance(body.queries, str) else body.queries
    documents = [body.documents] if isinstance(body.documents, str) else body.documents
    if not all(query.strip() for query in queries) or not queries:
        raise RefusedError(400, "Empty", "queries must not be empty or only whitespace")
    _require_count(len(documents), most, "documents")
    if len(queries) not in (1, len(documents)):
        counts = f"{len(queries)} queries and {len(documents)} documents"
        raise RefusedError(422, "Validation", f"{counts}: give one query, or as many queries as documents")
    return Texts(queries, documents)


def _require_count(count: int, most: int, name: str) -> None:
    if not count:
        raise RefusedError(400, "Empty", f"list of {name} must not be empty")
    if count > most:
        raise RefusedError(422, "Validation", f"{count} {name}, more than {most}; send them in several requests")


def read_documents(
    documents: Sequence[str] | Sequence[str | dict[str, JsonValue]], fields: Sequence[str] | None
) -> list[str]:
    """Return the text of each document: a string itself; of an object its `text`, or a line `key: value` for each key.

    With `fields` these keys of objects are read, in their order. Raises RefusedError where an object has none of them.
    """
    return [
        document if isinstance(document, str) else _text_of(document, fields, position)
        for position, document in enumerate(documents)
    ]


def _text_of(document: Mapping[str, JsonValue], fields: Sequence[str] | None, position: int) -> str:
    text = document.get("text")
    if not fields and isinstance(text, str):
        return text
    chosen = {key: document[key] for key in fields or document if key in document}
    if not chosen:
        missing = "none of the rank_fields" if fields else "no keys"
        raise RefusedError(422, "Validation", f"documents[{position}] has {missing}")
    return "\n".join(f"{key}: {_as_text(value)}" for key, value in chosen.items())


def _as_text(value: JsonValue) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def fused_with(body: RerankBody, documents: int, fusion: Fusion | None) -> Callable[[np.ndarray], np.ndarray]:
    """Return what makes the scores (documents,) that decide the order of the model's logits of one request.

    They are the logits themselves, unless the body brings first-stage scores or asks for the order of its documents to
    count. Raises RefusedError with 422 where these do not fit, or the model has no weights for a fusion.
    """
    if body.first_stage is not None and body.first_stage_scores is not None:
        raise RefusedError(422, "Validation", "give either `first_stage_scores` or `first_stage`")
    try:
        first = first_stage_numbers(documents, body.first_stage_scores, body.first_stage == "order")
    except ValueError as error:
        raise RefusedError(422, "Validation", str(error)) from None
    if first is None:
        return lambda logits: logits
    if fusion is None:
        raise RefusedError(422, "Validation", "this model has no fusion.json; leave the first stage out")
    numbers, kind = first
    return lambda logits: fusion.apply(logits, numbers, kind)


def best_first(scores: np.ndarray, body: RerankBody) -> list[int]:
    """Return the positions of the best documents as `Reranker.rank` orders them: equal scores keep their order."""
    limits = [limit for limit in (body.top_n, body.top_k) if limit]
    order: list[int] = np.argsort(-scores, kind="stable").tolist()
    return order[: min(limits)] if limits else order


def shown(scores: np.ndarray, raw: bool) -> list[float]:
    """Return the scores as clients see them: their sigmoid, in float64, where it tells logits up to 36 apart."""
    exact = scores.astype(np.float64)
    return exact.tolist() if raw else (1 / (1 + np.exp(-np.clip(exact, -700, 700)))).tolist()


def is_raw(body: RerankBody | ScoreBody) -> bool:
    """Return whether the client asked for logits."""
    return body.use_activation is False or (isinstance(body, RerankBody) and body.raw_scores is True)


def text_answer(body: RerankBody, texts: Texts, final: np.ndarray) -> list[dict[str, Any]]:
    """Return TEI's answer; Elasticsearch accepts no other keys in it."""
    scores = shown(final, is_raw(body))
    text = (lambda index: {"text": texts.documents[index]}) if body.return_text else lambda _: {}
    return [{"index": index, **text(index), "score": scores[index]} for index in best_first(final, body)]


def rerank_answer(
    body: RerankBody, texts: Texts, scored: Scored, final: np.ndarray, model: str, shape: DocumentShape, version: str
) -> dict[str, Any]:
    """Return the answer of Cohere, Jina, vLLM and Voyage, or with documents of shape `string` that of Infinity."""
    scores = shown(final, is_raw(body))
    order = best_first(final, body)

    def results(shape: DocumentShape) -> list[dict[str, Any]]:
        rows = [{"index": index, "relevance_score": scores[index]} for index in order]
        if body.return_documents:
            for row, index in zip(rows, order, strict=True):
                row["document"] = _returned(body, texts, index, shape)
        return rows

    answer: dict[str, Any] = {
        "id": f"rerank-{uuid4().hex}",
        "object": "rerank" if shape == "string" else "list",
        "model": model,
        "results": results(shape),
        "usage": _usage(scored),
    }
    if shape == "string":
        return answer | {"created": int(time.time())}
    if {"top_k", "truncation"} & body.model_fields_set:
        answer["data"] = results("string")
    units = ceil(len(texts.documents) / PER_SEARCH_UNIT)
    answer["meta"] = {"api_version": {"version": version}, "billed_units": {"search_units": units}}
    return answer


def _returned(body: RerankBody, texts: Texts, index: int, shape: DocumentShape) -> JsonValue:
    """Return a document as the client gets it back: the object that it sent, with the text that was read."""
    text = texts.documents[index]
    if shape == "string":
        return text
    sent = body.documents[index] if body.documents else text
    return {"text": text} | sent if isinstance(sent, dict) else {"text": text}


def score_answer(body: ScoreBody, scored: Scored, model: str) -> dict[str, Any]:
    """Return the answer of vLLM's `/score`."""
    scores = shown(scored.logits, is_raw(body))
    return {
        "id": f"score-{uuid4().hex}",
        "object": "list",
        "created": int(time.time()),
        "model": model,
        "data": [{"index": index, "object": "score", "score": score} for index, score in enumerate(scores)],
        "usage": _usage(scored),
    }


def _usage(scored: Scored) -> dict[str, int]:
    return {"prompt_tokens": scored.tokens, "total_tokens": scored.tokens}
