"""Requests to an endpoint: concurrent, with back-off and limits.

Every answer is in the store before its thread sends the next request, so a killed run repeats at most the requests that
were on their way.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from threading import Event, Lock
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from trainer.endpoints.service import TIMEOUT, Service
from trainer.endpoints.store import Answer, Store
from trainer.errors import RunError, one_line

if TYPE_CHECKING:
    import openai

TRIES = 7  # of a request; with the pauses below the last one is sent after about a minute
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds; the pause doubles with each try
GIVE_UP = 8  # requests in a row that fail for good, after which the endpoint is taken to be unusable
FATAL = {401: "the key is refused", 403: "access is refused", 404: "there is no such model or address"}
AGAIN = (408, 409, 425, 429)  # besides 5xx
SHOWN = 200  # characters of a server's message


class Request(Protocol):
    """What is sent at once, and the keys of its answers."""

    @property
    def keys(self) -> tuple[str, ...]:
        """Hashes of the content that is asked for, one for each answer."""
        ...

    @property
    def extras(self) -> Mapping[str, Any]:
        """Parameters that are left out where an endpoint does not know them."""
        ...

    def send(self, client: openai.OpenAI, unknown: Collection[str]) -> dict[str, Answer]:
        """Return the answers by key, without the extras in `unknown`."""
        ...


AnyRequest = TypeVar("AnyRequest", bound=Request)


def unanswered(requests: Sequence[AnyRequest], store: Store) -> list[AnyRequest]:
    """Return the requests with an answer that is not in the store, each once."""
    by_keys = {request.keys: request for request in requests}
    return [request for keys, request in by_keys.items() if any(key not in store.answers for key in keys)]


@dataclass
class Spent:
    """What one run of a stage has sent; `failures` counts requests without an answer by reason."""

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    answers: int = 0
    failures: dict[str, int] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """Tokens of requests and answers."""
        return self.input_tokens + self.output_tokens


class Attempt(NamedTuple):
    """The answers to a request; else the reason, and the least pause before another try, None if that is hopeless."""

    answers: dict[str, Answer] | None
    reason: str = ""
    pause: float | None = None


class Sender:
    """An endpoint whose answers are kept in a store; a context that closes its connections at the end."""

    def __init__(
        self,
        service: Service,
        store: Store,
        concurrency: int,
        max_requests: int | None = None,
        max_tokens: int | None = None,
        spent: Spent | None = None,
    ) -> None:
        self.spent = spent or Spent()
        self._service = service
        self._store = store
        self._concurrency = concurrency
        self._limits = max_requests, max_tokens
        self._lock = Lock()
        self._stop = Event()
        self._failed_in_a_row = 0
        self._unknown: set[str] = set()  # extras that the endpoint does not know
        self._client = service.connect()

    def __enter__(self) -> Sender:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    @property
    def stopped(self) -> bool:
        """Whether a limit was reached."""
        return self._stop.is_set()

    def ask(self, requests: Sequence[Request], advance: Callable[[], None]) -> None:
        """Send the requests that are not in the store, in order; `advance` is called after each.

        Raise RunError if the endpoint cannot be used. Requests that fail are counted in `spent`.
        """
        with ThreadPoolExecutor(self._concurrency) as pool:
            tasks = [pool.submit(self._one, request, advance) for request in unanswered(requests, self._store)]
            try:
                done, _ = wait(tasks, return_when=FIRST_EXCEPTION)
                for task in done:
                    task.result()
            finally:  # also on Ctrl-C: requests on their way are waited for, and no others are sent
                if not all(task.done() for task in tasks):
                    self._stop.set()
                pool.shutdown(cancel_futures=True)

    def refusal(self, request: Request) -> str:
        """Send a request whose answer is not kept; return the reason if the endpoint refuses it, else nothing."""
        answers, reason = self._answers(request)
        if answers is not None:
            self._count(answers)
        return "" if answers is not None or self.stopped else reason

    def unusable(self, reason: str, message: str) -> RunError:
        """Return the error of an endpoint that no request of this run can use."""
        remedy = f"correct the recipe or {self._service.variable}, and run it again: all answers are kept"
        return RunError(f"{self._service.key}: {self._service.name}: {reason} ({message}); {remedy}")

    def _one(self, request: Request, advance: Callable[[], None]) -> None:
        """Send one request until it is answered, fails for good, or a limit is reached."""
        answers, reason = self._answers(request)
        if answers is not None:
            self._store.add(answers)
            self._count(answers)
        elif self._stop.is_set():
            return
        else:
            self._fail(reason)
        advance()

    def _answers(self, request: Request) -> tuple[dict[str, Answer] | None, str]:
        """Return the answers to a request, else the reason why there are none."""
        attempt = Attempt(None)
        for number in range(TRIES):
            if not self._may_send():
                break
            attempt = self._send(request)
            if attempt.pause is None:  # answered, or hopeless
                break
            self._stop.wait(max(attempt.pause, _pause(number)) if number + 1 < TRIES else 0)
        return attempt.answers, attempt.reason

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

    def _send(self, request: Request) -> Attempt:
        """Send a request once; raise RunError if no request of this run can succeed."""
        import openai

        started, unknown = time.monotonic(), frozenset(self._unknown)
        try:
            answers = request.send(self._client, unknown)
            seconds = round((time.monotonic() - started) / len(answers), 3)
            return Attempt({key: self._cleaned(answer, seconds) for key, answer in answers.items()})
        except openai.APIStatusError as error:
            return self._refused(request.extras.keys() - unknown, error)
        except openai.APITimeoutError:
            return Attempt(None, f"no answer within {TIMEOUT:.0f} seconds", 0.0)
        except (openai.OpenAIError, ValueError, TypeError, AttributeError, LookupError) as error:
            return Attempt(None, self._told(error), 0.0)  # a broken connection, or not what the API promises

    def _refused(self, extras: Collection[str], error: openai.APIStatusError) -> Attempt:
        """Return whether a request refused with these extras may be sent again; raise RunError if no other one may."""
        status, message = error.status_code, self._told(_message(error))
        if 400 <= status < 500 and (named := [name for name in extras if name in _message(error)]):
            self._unknown |= {one for one in extras if any(name in one for name in named)}  # also top_logprobs
            return Attempt(None, message, 0.0)
        if status in FATAL or _has_no_credit(error):
            raise self.unusable(FATAL.get(status, "there is no credit left"), message) from None
        again = status in AGAIN or status >= 500
        return Attempt(None, f"status {status}: {message}", _retry_after(error.response.headers) if again else None)

    def _cleaned(self, answer: Answer, seconds: float) -> Answer:
        """Return an answer with its seconds and without the key."""
        hide = self._service.hide
        return answer._replace(text=hide(answer.text), ending=hide(answer.ending)[:SHOWN], seconds=seconds)

    def _told(self, error: object) -> str:
        """Return a message of the server on one line, without the key."""
        return self._service.hide(one_line(error))[:SHOWN]

    def _count(self, answers: Mapping[str, Answer]) -> None:
        with self._lock:
            self._failed_in_a_row = 0
            self.spent.answers += len(answers)
            self.spent.input_tokens += sum(answer.input_tokens for answer in answers.values())
            self.spent.output_tokens += sum(answer.output_tokens for answer in answers.values())

    def _fail(self, reason: str) -> None:
        """Count a request that failed for good; raise RunError if nothing else happens."""
        with self._lock:
            self.spent.failures[reason] = self.spent.failures.get(reason, 0) + 1
            self._failed_in_a_row += 1
            hopeless = self._failed_in_a_row >= GIVE_UP
        if hopeless:
            raise self.unusable(f"{GIVE_UP} requests in a row failed", reason)


def _message(error: openai.APIStatusError) -> str:
    """Return what the server says in a refusal, in the form of OpenAI, Cohere, Jina, vLLM, TEI or as plain text."""
    body: Any = error.body
    said = body
    if isinstance(body, Mapping):
        said = next((body[key] for key in ("message", "detail", "error") if body.get(key)), body)
    return said if isinstance(said, str) and said else json.dumps(said) if said else error.message


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
