"""The section `endpoints`: how teachers and a judge behind an endpoint are asked, and when a teacher is refused."""

from __future__ import annotations

from pydantic import Field, field_validator

from trainer.recipe.section import Section

LARGEST_PRICE = 10_000.0  # per million tokens


def require_prices(prices: tuple[float, float] | None) -> tuple[float, float] | None:
    """Return the prices; raise ValueError if one is none."""
    if prices and not all(0 <= price <= LARGEST_PRICE for price in prices):
        raise ValueError(f"are from 0 to {LARGEST_PRICE:,.0f} for a million tokens, e.g. [0.15, 0.6]")
    return prices


class Endpoints(Section):
    """How models behind an endpoint are asked that score documents: the teachers (mine.teacher, distil.teacher) and the
    judge (evaluate.judge). Keys are read from the environment: OPENAI_API_KEY, COHERE_API_KEY, JINA_API_KEY and
    VOYAGE_API_KEY for these services; for another host TEACHER_API_KEY, and JUDGE_API_KEY for the judge."""

    concurrency: int = Field(default=8, ge=1, le=256)
    """Maximum number of requests at the same time."""
    documents_per_request: int = Field(default=32, ge=1, le=1000)
    """Maximum number of documents in a request to a rerank server; 32 is the default limit of Text Embeddings
    Inference. A language model is asked for one document at a time."""
    max_requests: int | None = Field(default=None, ge=1)
    """Maximum number of requests that one run of a stage sends, retries included; the run stops there, and the same
    command continues it. null: no limit."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Tokens of requests and answers after which a run of a stage sends no more requests; null: no limit."""
    prices: tuple[float, float] | None = None
    """Prices of a million tokens of requests and of answers, in any currency, to print the costs; null: not printed."""
    answer_tokens: int = Field(default=16, ge=1)
    """Maximum number of tokens of a language model's grade; give a model that thinks before it answers 2000 or more."""
    agreement_queries: int = Field(default=100, ge=10)
    """Number of queries whose human labels a teacher or judge is compared with: a relevant document of each and another
    one. A teacher's scores are used after this comparison only."""
    least_auc: float | None = Field(default=0.7, ge=0, le=1)
    """Refuse a teacher (rerank:) that scores the relevant document above the other one for a smaller share of the
    queries; 0.5 is chance. null: never."""
    least_kappa: float | None = Field(default=0.3, ge=-1, le=1)
    """Refuse a teacher (chat:) whose grades agree less with the labels, as Cohen's kappa of relevant (grade 2 or 3) or
    not; 0 is chance, and people often reach 0.3 to 0.6. null: never."""

    @field_validator("prices")
    @classmethod
    def _require_prices(cls, prices: tuple[float, float] | None) -> tuple[float, float] | None:
        return require_prices(prices)
