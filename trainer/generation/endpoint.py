"""Requests to a chat model behind an OpenAI-compatible API: concurrent, with back-off and limits.

Every answer is in the store before its thread sends the next request, so a killed run repeats at most the requests that
were on their way. The key is read from the environment and appears in no file and no message.
"""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from importlib.util import find_spec
from threading import Event, Lock
from typing import TYPE_CHECKING, Any, NamedTuple

from trainer.errors import RunError, one_line
from trainer.generation.store import Answer, Store
from trainer.recipe import Endpoint
from trainer.runtime.run_folder import json_sha256

if TYPE_CHECKING:
    import openai

OPENAI_HOST, OPENAI_KEY, OTHER_KEY = "api.openai.com", "OPENAI_API_KEY", "GENERATE_API_KEY"
NO_KEY = "none"  # local servers need no key, but the client demands one
TRIES = 7  # of a request; with the pauses below the last one is sent after about a minute
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds; the pause doubles with each try
TIMEOUT = 180.0  # seconds for one answer
GIVE_UP = 8  # requests in a row that fail for good, after which the endpoint is taken to be unusable
FATAL = {401: "the key is refused", 403: "access is refused", 404: "there is no such model or address"}
AGAIN = (408, 409, 425, 429)  # besides 5xx
SHOWN = 200  # characters of a server's message
_THOUGHTS = re.compile(r"\s*<think>.*?(?:</think>|\Z)\s*", re.DOTALL)  # of reasoning models, before the answer


class Request(NamedTuple):
    """The content of one request: the model, its messages, and its parameters."""

    model: str
    messages: tuple[dict[str, str], ...]
    parameters: Mapping[str, Any]

    @property
    def key(self) -> str:
        """Hash of the content; the address and the key of the endpoint do not count."""
        return json_sha256(self.model, self.messages, dict(self.parameters))


def unanswered(requests: Sequence[Request], store: Store) -> dict[str, Request]:
    """Return the requests that are not in the store, by key."""
    by_key = ((request.key, request) for request in requests)
    return {key: request for key, request in by_key if key not in store.answers}


def key_name(endpoint: Endpoint) -> str:
    """Return the environment variable of the endpoint's key; OpenAI's is never sent to another host."""
    return OPENAI_KEY if endpoint.host == OPENAI_HOST else OTHER_KEY


def endpoint_problem(endpoint: Endpoint) -> str:
    """Return the reason, known before the first request, why an endpoint cannot be used; empty if there is none."""
    key = os.environ.get(key_name(endpoint), "").strip()
    if find_spec("openai") is None:
        return "generate: needs a package: pip install 'domain-reranker[generate]'"
    if not key and endpoint.host == OPENAI_HOST:
        return f"generate.model: {OPENAI_HOST} needs a key; set the environment variable {OPENAI_KEY}"
    if not key.isascii() or not key.isprintable() or " " in key:
        return f"{key_name(endpoint)}: is not a key, which is ASCII without spaces; set it again"
    return ""


def length_parameter(endpoint: Endpoint) -> str:
    """Return the name of the limit on an answer's tokens: OpenAI has renamed it, other servers know the old one."""
    return "max_completion_tokens" if endpoint.host == OPENAI_HOST else "max_tokens"


@dataclass
class Spent:
    """What one run of the stage has sent; `failures` counts requests without an answer by reason."""

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    answers: int = 0
    failures: dict[str, int] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """Tokens of requests and answers."""
        return self.input_tokens + self.output_tokens


class Chat:
    """An endpoint whose answers are kept in a store."""

    def __init__(
        self,
        endpoint: Endpoint,
        store: Store,
        concurrency: int,
        max_requests: int | None = None,
        max_tokens: int | None = None,
        spent: Spent | None = None,
    ) -> None:
        self.spent = spent or Spent()
        self._endpoint = endpoint
        self._store = store
        self._concurrency = concurrency
        self._limits = max_requests, max_tokens
        self._lock = Lock()
        self._stop = Event()
        self._failed_in_a_row = 0
        self._key = os.environ.get(key_name(endpoint), "").strip()
        self._client = self._connect()

    def _connect(self) -> openai.OpenAI:
        if problem := endpoint_problem(self._endpoint):
            raise RunError(problem)
        import openai

        # The library would send OpenAI's names of organization and project, from the environment, to every server.
        own = None if self._endpoint.host == OPENAI_HOST else ""
        return openai.OpenAI(
            api_key=self._key or NO_KEY,
            base_url=self._endpoint.url,
            organization=own,
            project=own,
            timeout=TIMEOUT,
            max_retries=0,
        )

    @property
    def stopped(self) -> bool:
        """Whether a limit was reached."""
        return self._stop.is_set()

    def ask(self, requests: Sequence[Request], advance: Callable[[], None]) -> None:
        """Send the requests that are not in the store, in order; `advance` is called after each.

        Raise RunError if the endpoint cannot be used. Requests that fail are counted in `spent`.
        """
        missing = unanswered(requests, self._store)
        with ThreadPoolExecutor(self._concurrency) as pool:
            tasks = [pool.submit(self._one, key, request, advance) for key, request in missing.items()]
            try:
                done, _ = wait(tasks, return_when=FIRST_EXCEPTION)
                for task in done:
                    task.result()
            finally:  # also on Ctrl-C: requests on their way are waited for, and no others are sent
                if not all(task.done() for task in tasks):
                    self._stop.set()
                pool.shutdown(cancel_futures=True)

    def _one(self, key: str, request: Request, advance: Callable[[], None]) -> None:
        """Send one request until it is answered, fails for good, or a limit is reached."""
        reason = ""
        for number in range(TRIES):
            if not self._may_send():
                return
            answer, reason, pause = self._send(request)
            if answer is not None:
                self._store.add(key, answer)
                self._count(answer)
                advance()
                return
            if pause is None:
                break
            self._stop.wait(max(pause, _pause(number)) if number + 1 < TRIES else 0)
        self._fail(reason)
        advance()

    def _may_send(self) -> bool:
        """Count a request, unless a limit is reached."""
        most, tokens = self._limits
        with self._lock:
            if self._stop.is_set():
                return False
            if (most and self.spent.requests >= most) or (tokens and self.spent.tokens >= tokens):
                self._stop.set()
                return False
            self.spent.requests += 1
            return True

    def _send(self, request: Request) -> tuple[Answer | None, str, float | None]:
        """Return the answer; or the reason of the failure and the least pause before another try, None if hopeless.

        Raise RunError if no request of this run can succeed.
        """
        import openai

        started = time.monotonic()
        try:
            create: Any = self._client.chat.completions.create  # its types know no parameters in a dict
            response = create(model=request.model, messages=list(request.messages), **request.parameters)
            answer = _answer(response, time.monotonic() - started)
            return answer._replace(text=self._hide(answer.text), ending=self._hide(answer.ending)[:SHOWN]), "", None
        except openai.APIStatusError as error:
            status, message = error.status_code, self._told(error.message)
            if status in FATAL or _has_no_credit(error):
                raise RunError(self._unusable(FATAL.get(status, "there is no credit left"), message)) from None
            again = status in AGAIN or status >= 500
            return None, f"status {status}: {message}", _retry_after(error.response.headers) if again else None
        except openai.APITimeoutError:
            return None, f"no answer within {TIMEOUT:.0f} seconds", 0.0
        except (openai.OpenAIError, ValueError, TypeError, AttributeError, LookupError) as error:
            return None, self._told(error), 0.0  # a broken connection, or an answer that is not what the API promises

    def _told(self, error: object) -> str:
        """Return a message of the server on one line, without the key."""
        return self._hide(one_line(error))[:SHOWN]

    def _hide(self, text: str) -> str:
        """Return a text without the key, which a server may repeat."""
        return text.replace(self._key, "***") if self._key else text

    def _unusable(self, reason: str, message: str) -> str:
        model, url = self._endpoint
        remedy = f"correct the recipe or {key_name(self._endpoint)}, and run it again: all answers are kept"
        return f"generate.model: {model} at {url}: {reason} ({message}); {remedy}"

    def _count(self, answer: Answer) -> None:
        with self._lock:
            self._failed_in_a_row = 0
            self.spent.answers += 1
            self.spent.input_tokens += answer.input_tokens
            self.spent.output_tokens += answer.output_tokens

    def _fail(self, reason: str) -> None:
        """Count a request that failed for good; raise RunError if nothing else happens."""
        with self._lock:
            self.spent.failures[reason] = self.spent.failures.get(reason, 0) + 1
            self._failed_in_a_row += 1
            hopeless = self._failed_in_a_row >= GIVE_UP
        if hopeless:
            raise RunError(self._unusable(f"{GIVE_UP} requests in a row failed", reason))


def _answer(response: Any, seconds: float) -> Answer:
    """Return a response's first choice; a refusal or a missing text is an answer too, which has no query."""
    choice = response.choices[0]
    message, usage = choice.message, response.usage
    text = message.content or getattr(message, "refusal", None) or ""
    if not isinstance(text, str):
        raise TypeError("the answer's content is not a text")
    text = without_thoughts(text)
    tokens = (int(getattr(usage, name, 0) or 0) for name in ("prompt_tokens", "completion_tokens"))
    return Answer(text, str(choice.finish_reason or ""), *tokens, seconds=round(seconds, 3))


def without_thoughts(text: str) -> str:
    """Return an answer without the thoughts that some models write before it."""
    return _THOUGHTS.sub("", text)


def _has_no_credit(error: Any) -> bool:
    return error.status_code == 402 or error.code == "insufficient_quota"


def _pause(number: int) -> float:
    """Return the seconds before the next try, with jitter, so that requests do not return all at once."""
    return min(LONGEST_PAUSE, FIRST_PAUSE * 2**number) * random.uniform(0.75, 1.0)


def _retry_after(headers: Mapping[str, str]) -> float:
    """Return the seconds that a server asks to wait, 0 if it does not."""
    value = headers.get("retry-after", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except (TypeError, ValueError):
            return 0.0
    return min(max(0.0, seconds), LONGEST_PAUSE) if seconds == seconds else 0.0
