"""The protocols of Cohere v1 and v2, Jina, Voyage, TEI, Infinity and vLLM: from bodies to texts, from scores to bodies.

One request body has the keys of all protocols. Unknown keys are ignored, and `null` is the same as a missing key. The
keys of a request determine its response: `texts` is TEI, `top_k` or `truncation` is Voyage.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from math import ceil
from typing import Any, Literal
from uuid import uuid4

import numpy as np
from pydantic import JsonValue

from trainer.model import Calibration, Fusion
from trainer.model.calibration import SIGMOID
from trainer.model.fusion import first_stage_numbers
from trainer.serving.batching import Scored, Texts
from trainer.serving.bodies import RerankBody, ScoreBody
from trainer.serving.settings import RefusedError

PER_SEARCH_UNIT = 100  # documents in one of Cohere's search units
DocumentShape = Literal["object", "string"]
PublicScores = Callable[[np.ndarray], list[float]]


def texts_to_rank(body: RerankBody, most: int) -> Texts:
    """Return the texts to score; raise RefusedError: 400 for empty input, 422 for invalid input."""
    if (body.documents is None) == (body.texts is None):
        raise RefusedError(422, "Validation", "give either `documents` or `texts`")
    if not body.query.strip():
        raise RefusedError(400, "Empty", "query must not be empty or only whitespace")
    given = body.documents or body.texts or []
    _require_count(len(given), most, "documents" if body.texts is None else "texts")
    cut = body.truncate is not False and body.truncation is not False
    return Texts([body.query], read_documents(given, body.rank_fields), body.max_tokens_per_doc, cut)


def texts_to_score(body: ScoreBody, most: int) -> Texts:
    """Return the texts to score; raise RefusedError: 400 for empty input, 422 for invalid input."""
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
    """Return the text of each document: a string itself, an object's `text`, or a line `key: value` for each key.

    With `fields` only these keys of objects are read, in this order. Raise RefusedError if an object has none.
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


def fusion_of(body: RerankBody, documents: int, fusion: Fusion | None) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function from the logits (documents,) of one request to its final scores.

    The final scores are the logits, or their fusion if the body has first-stage scores or `first_stage: order`.
    Raise RefusedError with 422 if these are invalid, or if the model has no fusion weights.
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
        raise RefusedError(
            422, "Validation", "this model has no fusion.json; leave out first_stage and first_stage_scores"
        )
    scores, kind = first
    return lambda logits: fusion.apply(logits, scores, kind)


def best_first(scores: np.ndarray, body: RerankBody) -> list[int]:
    """Return the positions of the best documents in the order of `Reranker.rank`; ties keep their order."""
    limits = [limit for limit in (body.top_n, body.top_k) if limit]
    order: list[int] = np.argsort(-scores, kind="stable").tolist()
    return order[: min(limits)] if limits else order


def public_scores_of(body: RerankBody | ScoreBody, calibration: Calibration | None) -> PublicScores:
    """Return a function from final scores to the scores for clients.

    These are sigmoids in float64, distinct for logits up to 36; logits or calibrated probabilities if the body asks for
    them. Raise RefusedError with 422 if probabilities are impossible.
    """
    raw = body.use_activation is False or (isinstance(body, RerankBody) and body.raw_scores is True)
    if not body.probabilities:
        return lambda scores: (scores.astype(np.float64) if raw else SIGMOID.probability(scores)).tolist()
    if raw:
        raise RefusedError(422, "Validation", "give either `probabilities` or one of `raw_scores` and `use_activation`")
    if isinstance(body, RerankBody) and (body.first_stage is not None or body.first_stage_scores is not None):
        raise RefusedError(
            422,
            "Validation",
            "fused scores depend on the other documents of a request, so they have no probabilities: leave out "
            "`probabilities`, or `first_stage` and `first_stage_scores`",
        )
    if calibration is None:
        raise RefusedError(422, "Validation", "this model has no calibration.json; leave out `probabilities`")
    curve = calibration.relevant
    return lambda scores: curve.probability(scores).tolist()


def text_answer(body: RerankBody, texts: Texts, final: np.ndarray, public: PublicScores) -> list[dict[str, Any]]:
    """Return TEI's response; Elasticsearch accepts no other keys in it."""
    scores = public(final)
    text = (lambda index: {"text": texts.documents[index]}) if body.return_text else lambda _: {}
    return [{"index": index, **text(index), "score": scores[index]} for index in best_first(final, body)]


def rerank_answer(
    body: RerankBody,
    texts: Texts,
    scored: Scored,
    final: np.ndarray,
    public: PublicScores,
    model: str,
    shape: DocumentShape,
    version: str,
) -> dict[str, Any]:
    """Return the response of Cohere, Jina, vLLM and Voyage, or with documents of shape `string` that of Infinity."""
    scores = public(final)
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
    """Return a document for the response: the object from the request, with the text that was scored."""
    text = texts.documents[index]
    if shape == "string":
        return text
    sent = body.documents[index] if body.documents else text
    return {"text": text} | sent if isinstance(sent, dict) else {"text": text}


def score_answer(scored: Scored, public: PublicScores, model: str) -> dict[str, Any]:
    """Return the response of vLLM's `/score`."""
    scores = public(scored.logits)
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
