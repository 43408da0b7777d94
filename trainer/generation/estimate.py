"""Requests, tokens, costs and hours of the stage, before anything is sent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from trainer.endpoints import Store, cost_of, grades
from trainer.endpoints.chat import ChatRequest
from trainer.generation.prompt import SYSTEM
from trainer.recipe.generate import Generate

SAMPLE = 200  # requests that are tokenized
MESSAGE_TOKENS = 4  # that a chat template adds to each message, about
SECONDS = 5.0  # for an answer, until some are measured


class Estimate(NamedTuple):
    """The forecast of a run; `output_tokens` is the most that can be sent back."""

    requests: int
    stored: int
    input_tokens: int
    output_tokens: int
    cost: float | None
    hours: float
    measured: bool  # whether the hours are from answers of this model, and not assumed
    checks: int  # most requests of the check
    check_tokens: int  # that these send

    def lines(self, section: Generate) -> list[str]:
        """Return the forecast for the terminal."""
        assert section.endpoint is not None
        model, url, _ = section.endpoint
        source = "as fast as the answers so far" if self.measured else f"if an answer takes {SECONDS:.0f} seconds"
        lines = [
            f"{self.requests} requests to {model} at {url}; {self.stored} answers are stored already",
            f"about {self.input_tokens:,} tokens are sent; at most {self.output_tokens:,} come back "
            f"({section.answer_tokens} an answer)",
            f"about {self.hours:.1f} hours with {section.concurrency} requests at a time, {source}",
        ]
        if self.checks:
            lines.append(
                f"the check (generate.check) sends at most {self.checks} more requests and {self.check_tokens:,} tokens"
            )
        if self.cost is not None:
            lines.append(f"costs: at most {self.cost:,.2f} (generate.prices)")
        return lines


def forecast(
    section: Generate, requests: Sequence[ChatRequest], wanted: int, store: Store, count_tokens: Callable[[str], int]
) -> Estimate:
    """Return the forecast for `wanted` of the requests; `count_tokens` counts those of a text.

    Which documents are asked is only known once they are embedded, so stored answers are counted among all requests.
    """
    stored = [store.answers[request.key] for request in requests if request.key in store.answers]
    missing = [request for request in requests if request.key not in store.answers]
    count = max(0, min(wanted, len(requests)) - len(stored))
    step = max(1, len(missing) // SAMPLE)
    sample = missing[::step]
    tokens = count * sum(_tokens(request, count_tokens) for request in sample) / max(1, len(sample))
    seconds = sum(answer.seconds for answer in stored) / len(stored) if stored else SECONDS
    output = count * section.answer_tokens
    hours = count * seconds / section.concurrency / 3600
    checks = count * section.queries_per_document * (section.check_depth + 1) if section.check else 0
    check_tokens = round(checks * (tokens / max(1, count) + count_tokens(grades.SYSTEM) - count_tokens(SYSTEM)))
    cost = cost_of(section, tokens + check_tokens, output + checks * grades.ANSWER_TOKENS)
    return Estimate(count, len(stored), round(tokens), output, cost, hours, bool(stored), checks, check_tokens)


def _tokens(request: ChatRequest, count_tokens: Callable[[str], int]) -> int:
    return sum(count_tokens(message["content"]) + MESSAGE_TOKENS for message in request.messages)
