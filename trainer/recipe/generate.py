"""The section `generate`: queries made from the documents of the corpus, or taken from them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from trainer.recipe.endpoint import CHAT, SHAPES, Endpoint, is_endpoint, read_endpoint, without_address
from trainer.recipe.endpoints import require_prices
from trainer.recipe.section import Section, contradiction

Kind = Literal["keyword", "question", "symptom", "comparison"]
EXTRACT = "extract"
OF_A_MODEL = ("kinds", "examples", "temperature", "answer_tokens", "tokenizer")  # keys that only a model reads


class Generate(Section):
    """Queries made from the documents, by a language model or without one; runs only with this section, for a corpus
    without queries or with few."""

    model: str
    """Model that writes the queries, behind an OpenAI-compatible API: chat:MODEL@URL. The key is read from the
    environment: OPENAI_API_KEY for api.openai.com, else GENERATE_API_KEY. Or extract, without a model: the queries are
    titles, headings, questions, docstrings and sentences of the documents, and are cut out of these in training."""
    documents: int = Field(default=2000, ge=1)
    """Number of documents that queries are made from, one request each; they are sampled evenly from clusters of the
    bi-encoder's vectors, so that all topics are covered."""
    queries_per_document: int = Field(default=2, ge=1, le=3)
    """Queries made from each document, before filtering; of as many kinds as possible."""
    kinds: tuple[Kind, ...] = ("question", "keyword", "symptom", "comparison")
    """Kinds of queries, in turn: question; keyword: two to five words; symptom: a problem in the words of somebody who
    does not know the answer; comparison: of two things."""
    examples: Path | None = None
    """File with real queries of your users, one a line (.txt) or as JSON lines with "text"; the made queries get their
    style. A handful is enough, the first 10 are used."""
    temperature: float | None = Field(default=0.7, ge=0, le=2)
    """Sampling temperature of the model; null: the endpoint's default, which some models require."""
    answer_tokens: int = Field(default=256, ge=16)
    """Maximum number of tokens of an answer; a longer one is cut off."""
    concurrency: int = Field(default=8, ge=1, le=256)
    """Maximum number of requests at the same time."""
    max_requests: int | None = Field(default=None, ge=1)
    """Maximum number of requests that one run of the stage sends, retries included; null: no limit. The queries of the
    documents answered so far are used."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Tokens of requests and answers after which a run of the stage sends no more requests; null: no limit."""
    prices: tuple[float, float] | None = None
    """Prices of a million tokens of requests and of answers, in any currency, to print the costs; null: not printed."""
    tokenizer: str | None = None
    """Model whose tokenizer counts tokens for the estimate (Hub id, folder, package:NAME/SUB); null: that of
    reranker.model, which usually counts a little more than a language model's."""
    round_trip: int | None = Field(default=20, ge=1, le=200)
    """Drop a made query if the untuned first stage does not return its document within this rank; null: keep all."""

    check: str | None = None
    """Model that judges for each made query its document and the first candidates: others that answer it become
    relevant too, and a query that its document does not answer is dropped. A language model (chat:MODEL@URL), or a
    cross-encoder (Hub id, folder, package:NAME/SUB), for which documents answer that score as high as the query's own;
    null: no check."""
    check_depth: int = Field(default=5, ge=1, le=50)
    """Number of candidates that are judged for each made query, one request each."""
    check_trust_remote_code: bool = False
    """Allow Python code in the folder of the cross-encoder that checks."""

    @field_validator("model", "check")
    @classmethod
    def _require_endpoint(cls, reference: str | None, info: ValidationInfo) -> str | None:
        if info.field_name == "model" and reference and not reference.startswith(CHAT):
            if reference != EXTRACT:
                given = without_address(reference)
                raise ValueError(f"is {EXTRACT}, or an endpoint, {SHAPES[CHAT]}, got {given!r:.100}")
        elif reference is not None and is_endpoint(reference):
            read_endpoint(reference)
        return reference

    @model_validator(mode="after")
    def _refuse_keys_of_a_model(self) -> Generate:
        fields = type(self).model_fields
        given = [key for key in OF_A_MODEL if getattr(self, key) != fields[key].default]
        if self.extracts and given:
            raise contradiction(given[0], "has no effect with model: extract, which asks no model; remove it")
        return self

    @field_validator("kinds")
    @classmethod
    def _require_kinds(cls, kinds: tuple[Kind, ...]) -> tuple[Kind, ...]:
        if not kinds or len(set(kinds)) < len(kinds):
            raise ValueError("names each kind once, and at least one, e.g. [question, keyword]")
        return kinds

    @field_validator("prices")
    @classmethod
    def _require_prices(cls, prices: tuple[float, float] | None) -> tuple[float, float] | None:
        return require_prices(prices)

    @property
    def extracts(self) -> bool:
        """Whether the queries are taken from the documents, without a model."""
        return self.model == EXTRACT

    @property
    def endpoint(self) -> Endpoint | None:
        """The name and the address of the model that writes the queries, None without a model."""
        return None if self.extracts else read_endpoint(self.model)

    @property
    def origin(self) -> str:
        """The name of the model that writes the queries, without its address, or extract."""
        return self.endpoint.model if self.endpoint else EXTRACT

    @property
    def checker(self) -> Endpoint | None:
        """The name and the address of the language model that judges, None without one."""
        return read_endpoint(self.check) if self.check and self.check.startswith(CHAT) else None

    @property
    def cross_encoder(self) -> str | None:
        """The cross-encoder that judges, None without one."""
        return None if self.checker else self.check
