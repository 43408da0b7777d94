"""Request and response bodies of all protocols, as their schema describes them."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, AliasChoices, BaseModel, ConfigDict, Field, JsonValue

from trainer.serving.settings import RefusedError

T = TypeVar("T")
Count = Annotated[int, Field(ge=0)]


def require_json(value: T) -> T:
    """Return a value unchanged; raise ValueError if it has what Python reads in JSON but no other program does."""
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        raise ValueError("contains half a surrogate pair, as if a text was cut inside a character") from None
    except ValueError:
        raise ValueError("contains NaN or Infinity, which are not JSON") from None
    return value


Text = Annotated[str, AfterValidator(require_json)]
Fields = Annotated[dict[str, JsonValue], AfterValidator(require_json)]
# These conditions are in the schema for its readers; the server checks them itself, with the errors of the protocols.
Query = Annotated[Text, Field(json_schema_extra={"pattern": r"\S"})]
FILLED: dict[str, JsonValue] = {"minItems": 1}
ONE_LIST: dict[str, JsonValue] = {
    "oneOf": [{"required": [name], "properties": {name: {"type": "array"}}} for name in ("documents", "texts")]
}


class RerankBody(BaseModel):
    """The request body of `/rerank`, `/v1/rerank` and `/v2/rerank`."""

    model_config = ConfigDict(json_schema_extra=ONE_LIST)

    query: Query
    documents: Annotated[list[Text | Fields], Field(json_schema_extra=FILLED)] | None = Field(
        None, description="Texts, or objects with `text`; other objects are read as a line `key: value` for each key"
    )
    texts: Annotated[list[Text], Field(json_schema_extra=FILLED)] | None = Field(
        None, description="TEI's name for documents; the response is TEI's array"
    )
    model: str | None = Field(None, description="Any name; the server has one model")
    top_n: Count | None = Field(None, description="Number of results; 0 and null: all")
    top_k: Count | None = Field(None, description="Voyage's name for top_n; the response has `data` as well")
    return_documents: bool | None = None
    return_text: bool | None = Field(None, description="TEI's name for return_documents")
    raw_scores: bool | None = Field(None, description="Return logits, not their sigmoid")
    use_activation: bool | None = Field(None, description="False, as in vLLM: the same as raw_scores")
    truncate: bool | None = Field(None, description="False: refuse a pair that is too long; otherwise it is truncated")
    truncation: bool | None = Field(None, description="Voyage's name for truncate")
    truncation_direction: Literal["right", "Right"] | None = None
    max_tokens_per_doc: Annotated[int, Field(ge=1)] | None = Field(
        None, description="First truncate each document to this number of tokens"
    )
    rank_fields: list[str] | None = Field(None, description="Keys of document objects that are read")
    first_stage: Literal["order"] | None = Field(
        None, description="order: the documents are in the first stage's order, which is fused with the model's scores"
    )
    first_stage_scores: list[float] | None = Field(
        None, description="One number for each document, fused with the model's scores by the model's fusion.json"
    )

    probabilities: bool | None = Field(
        None, description="Return calibrated probabilities of relevance as scores, by the model's calibration.json"
    )


class ScoreBody(BaseModel):
    """The request body of `/score`: one query for all documents, or as many queries as documents."""

    queries: Query | Annotated[list[Query], Field(json_schema_extra=FILLED)] = Field(
        validation_alias=AliasChoices("queries", "text_1", "data_1")
    )
    documents: Text | Annotated[list[Text], Field(json_schema_extra=FILLED)] = Field(
        validation_alias=AliasChoices("documents", "items", "text_2", "data_2")
    )
    model: str | None = None
    use_activation: bool | None = Field(None, description="False: return logits, not their sigmoid")
    probabilities: bool | None = Field(
        None, description="Return calibrated probabilities of relevance as scores, by the model's calibration.json"
    )


class RankedDocument(BaseModel):
    """One result of a response; `document` only on request."""

    index: int
    relevance_score: float
    document: JsonValue = None


class Usage(BaseModel):
    """The number of tokens that the model computed."""

    prompt_tokens: int
    total_tokens: int


class RerankAnswer(BaseModel):
    """The response to a body with `documents`."""

    id: str
    object: Literal["list", "rerank"]
    model: str
    results: list[RankedDocument]
    data: list[RankedDocument] | None = None
    meta: dict[str, JsonValue] | None = None
    usage: Usage
    created: int | None = None


class RankedText(BaseModel):
    """One result of TEI's response."""

    index: int
    score: float
    text: str | None = None


class ScoreAnswer(BaseModel):
    """The response of `/score`, in the order of the documents."""

    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[dict[str, JsonValue]]
    usage: Usage


class ErrorBody(BaseModel):
    """The body of every error response, with the message in the keys of all protocols.

    `detail` is a list in Infinity's responses with 422, because its client reads nothing else.
    """

    error: str
    error_type: str
    message: str
    detail: str | list[dict[str, JsonValue]]


def error_body(refused: RefusedError, path: str = "") -> dict[str, Any]:
    """Return the body of an error response to a request for a path."""
    sentence = refused.sentence
    body: dict[str, Any] = {"error": sentence, "error_type": refused.kind, "message": sentence, "detail": sentence}
    if refused.status == 422 and path.startswith("/infinity/"):
        body["detail"] = [{"loc": ["body"], "msg": sentence, "type": "value_error"}]
    return body
