"""Requests sent with progress and costs, and the failures among them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from trainer.endpoints.sender import Request, Sender, Spent, unanswered
from trainer.endpoints.service import Service
from trainer.endpoints.store import Store
from trainer.errors import RunError
from trainer.runtime import console

FEW_FAILED = 0.05  # share of requests without an answer that a stage accepts
MILLION = 1_000_000


class Limits(Protocol):
    """The keys of a recipe's section that limit requests; `prices` are for a million tokens sent and received."""

    @property
    def concurrency(self) -> int: ...  # noqa: D102
    @property
    def max_requests(self) -> int | None: ...  # noqa: D102
    @property
    def max_tokens(self) -> int | None: ...  # noqa: D102
    @property
    def prices(self) -> tuple[float, float] | None: ...  # noqa: D102


class Asked(NamedTuple):
    """Whether a limit was reached, and how many of the requests have an answer."""

    stopped: bool
    answered: int


def ask(
    service: Service, requests: Sequence[Request], store: Store, limits: Limits, spent: Spent, stage: str = ""
) -> Asked:
    """Send the requests that are not in the store, and count them in `spent`.

    A limit that is reached is a warning; `stage` is the name on the terminal, by default the recipe's section. Raise
    RunError if the endpoint cannot be used, or if more than a few requests fail.
    """
    stage = stage or service.key.partition(".")[0]
    missing = unanswered(requests, store)
    stored = len(requests) - len(missing)
    if not missing:
        return Asked(False, stored)
    console.stage(stage, f"{len(missing)} requests to {service.endpoint.url}; {stored} answers are stored")
    before = Counter(spent.failures)
    with (
        sender_of(service, store, limits, spent) as sender,
        console.progress(stage, len(requests), stored) as bar,
    ):
        sender.ask(missing, lambda: bar(1, _note(spent, limits)))
    failures = Counter(spent.failures) - before
    if failed := failures.total():
        reasons = "; ".join(f"{count} times {reason}" for reason, count in failures.items())
        message = f"{failed} of {len(requests)} requests have no answer ({reasons})"
        if failed > FEW_FAILED * len(requests):
            raise RunError(f"{stage}: {message}; all answers are kept: run the same command again")
        console.warn(stage, message)
    answered = len(requests) - len(unanswered(requests, store))
    if sender.stopped:
        limit = f"{spent.requests} requests and {spent.tokens:,} tokens were sent"
        console.warn(stage, f"a limit of the recipe is reached ({limit}): {answered} of {len(requests)} answered")
    return Asked(sender.stopped, answered)


def sender_of(service: Service, store: Store, limits: Limits, spent: Spent) -> Sender:
    """Return a sender with the limits of a recipe."""
    return Sender(service, store, limits.concurrency, limits.max_requests, limits.max_tokens, spent)


def _note(spent: Spent, limits: Limits) -> str:
    cost = cost_of(limits, spent.input_tokens, spent.output_tokens)
    return f"{spent.tokens:,} tokens" if cost is None else f"cost {cost:.2f}"


def cost_of(limits: Limits, input_tokens: float, output_tokens: float) -> float | None:
    """Return the costs of tokens at the prices of the recipe, None without prices."""
    if limits.prices is None:
        return None
    return (input_tokens * limits.prices[0] + output_tokens * limits.prices[1]) / MILLION
