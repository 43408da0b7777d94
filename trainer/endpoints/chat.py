"""Requests to a language model behind an OpenAI-compatible API."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from trainer.endpoints.service import OPENAI_HOST
from trainer.endpoints.store import Answer
from trainer.recipe import Endpoint
from trainer.runtime.run_folder import json_sha256

if TYPE_CHECKING:
    import openai

LEAST_CHANCE = 0.5  # of the digits together, below which a model did not mean to answer with one of them
_THOUGHTS = re.compile(r"\s*<think>.*?(?:</think>|\Z)\s*", re.DOTALL)  # of reasoning models, before the answer


class ChatRequest(NamedTuple):
    """The content of one request: the model, its messages, and its parameters.

    `extras` are parameters that are left out where an endpoint does not know them.
    """

    model: str
    messages: tuple[dict[str, str], ...]
    parameters: Mapping[str, Any]
    extras: Mapping[str, Any] = {}

    @property
    def key(self) -> str:
        """Hash of the content; the address and the key of the endpoint do not count."""
        extras = [dict(self.extras)] if self.extras else []
        return json_sha256(self.model, self.messages, dict(self.parameters), *extras)

    @property
    def keys(self) -> tuple[str, ...]:
        """The key of the answer."""
        return (self.key,)

    def send(self, client: openai.OpenAI, unknown: Collection[str]) -> dict[str, Answer]:
        """Return the answer by its key, without the extras in `unknown`; it took no time yet.

        Raise ValueError, TypeError, AttributeError or LookupError if the response is not what the API promises.
        """
        extras = {name: value for name, value in self.extras.items() if name not in unknown}
        create: Any = client.chat.completions.create  # its types know no parameters in a dict
        response = create(model=self.model, messages=list(self.messages), **self.parameters, **extras)
        return {self.key: _answer(response)}


def length_parameter(endpoint: Endpoint) -> str:
    """Return the name of the limit on an answer's tokens: OpenAI has renamed it, other servers know the old one."""
    return "max_completion_tokens" if endpoint.host == OPENAI_HOST else "max_tokens"


def without_thoughts(text: str) -> str:
    """Return an answer without the thoughts that some models write before it."""
    return _THOUGHTS.sub("", text)


def _answer(response: Any) -> Answer:
    """Return a response's first choice; a refusal or a missing text is an answer too, which has no query."""
    choice = response.choices[0]
    message, usage = choice.message, response.usage
    text = message.content or getattr(message, "refusal", None) or ""
    if not isinstance(text, str):
        raise TypeError("the answer's content is not a text")
    tokens = (int(getattr(usage, name, 0) or 0) for name in ("prompt_tokens", "completion_tokens"))
    chances = _chances(getattr(getattr(choice, "logprobs", None), "content", None))
    return Answer(without_thoughts(text), str(choice.finish_reason or ""), *tokens, seconds=0.0, chances=chances)


def _chances(tokens: Any) -> dict[str, float] | None:
    """Return {digit: probability} at the last token that is a digit; None if the response has none."""
    for token in reversed(tokens if isinstance(tokens, Sequence) else ()):
        if _digit(token):
            others = getattr(token, "top_logprobs", None)
            found: dict[str, float] = {}
            for one in others if isinstance(others, Sequence) else ():
                value = getattr(one, "logprob", None)
                if _digit(one) and isinstance(value, int | float) and value <= 0:  # not NaN
                    found[_digit(one)] = found.get(_digit(one), 0.0) + math.exp(value)
            return found if sum(found.values()) >= LEAST_CHANCE else None
    return None


def _digit(token: Any) -> str:
    """Return the digit that a token is, empty for another token."""
    text = getattr(token, "token", None)
    stripped = text.strip() if isinstance(text, str) else ""
    return stripped if len(stripped) == 1 and stripped in "0123456789" else ""
