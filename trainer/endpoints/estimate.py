"""Requests, tokens and costs of scoring pairs by an endpoint, before anything is sent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from trainer.endpoints import grades
from trainer.endpoints.asking import cost_of
from trainer.recipe import CHAT, Endpoint, Endpoints

SAMPLE = 200  # pairs that are tokenized
MESSAGE_TOKENS = 8  # that a chat template adds to the two messages, about


class Estimate(NamedTuple):
    """The most requests, the tokens that they send, the most that come back, and the costs if prices are given."""

    requests: int
    input_tokens: int
    output_tokens: int
    cost: float | None

    def sentence(self, endpoint: Endpoint) -> str:
        """Return the estimate for the terminal."""
        back = f" and at most {self.output_tokens:,} back" if self.output_tokens else ""
        cost = "" if self.cost is None else f"; costs: at most {self.cost:,.2f} (endpoints.prices)"
        name = endpoint.model or endpoint.url
        return f"{name}: at most {self.requests:,} requests, about {self.input_tokens:,} tokens sent{back}{cost}"


def estimate_pairs(
    endpoint: Endpoint,
    section: Endpoints,
    pairs: int,
    queries: int,
    sample: Sequence[tuple[str, str]],
    count: Callable[[str], int],
) -> Estimate:
    """Return the estimate for `pairs` of `queries`, from a sample of them; `count` counts the tokens of a text."""
    step = max(1, len(sample) // SAMPLE)
    counted = [count(query) + count(document[: grades.DOCUMENT_CHARACTERS]) for query, document in sample[::step]]
    tokens = sum(counted) / max(1, len(counted))
    if endpoint.kind == CHAT:
        tokens += count(grades.SYSTEM) + MESSAGE_TOKENS
        requests, output = pairs, pairs * section.answer_tokens
    else:
        requests, output = queries * -(-pairs // max(1, queries * section.documents_per_request)), 0
    return Estimate(requests, round(pairs * tokens), output, cost_of(section, pairs * tokens, output))
