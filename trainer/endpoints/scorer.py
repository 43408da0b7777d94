"""An endpoint as a function from pairs of texts to scores: a rerank server's, or a language model's grades."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from trainer.endpoints.asking import ask, sender_of
from trainer.endpoints.chat import ChatRequest
from trainer.endpoints.grades import expected_grade, request_for_score
from trainer.endpoints.rerank import (
    DOCUMENT_CHARACTERS,
    FORMS,
    Form,
    RerankRequest,
    address,
    form_of,
    logits_of,
    pair_key,
)
from trainer.endpoints.sender import Spent
from trainer.endpoints.service import Service
from trainer.endpoints.store import Answer, Store
from trainer.errors import RunError
from trainer.recipe import CHAT, Endpoints
from trainer.runtime import console

Pair = tuple[str, str]  # the texts of a query and a document
MOST_UNREADABLE = 0.1  # share of a model's answers without a grade, asked for twice, beyond which it is of no use
Show = Callable[[Sequence[Pair]], None]


@dataclass
class PairScorer:
    """An endpoint's scores of pairs, each asked for once; `unreadable` counts answers that held no grade."""

    service: Service
    store: Store
    section: Endpoints
    stage: str
    show_estimate: Show  # called with the pairs that are not stored, before they are sent
    spent: Spent = field(default_factory=Spent)
    unreadable: int = 0
    stopped: bool = False  # whether a limit of the recipe was reached

    @property
    def is_chat(self) -> bool:
        """Whether a language model gives grades from 0 to 3, and not a reranker logits."""
        return self.service.endpoint.kind == CHAT

    def __call__(self, pairs: Sequence[Pair]) -> np.ndarray:
        """Return the scores (pairs,) float32, NaN for pairs without one.

        These are pairs whose request failed for good or was not sent because of a limit (`stopped`), or for which a
        language model twice gave no grade. Raise RunError if the endpoint cannot be used.
        """
        return self._grades(pairs) if self.is_chat else self._logits(pairs)

    def stored(self, pairs: Sequence[Pair]) -> np.ndarray:
        """Return whether each pair has an answer (pairs,)."""
        keys = (self._request(*pair).key if self.is_chat else self._key(pair) for pair in pairs)
        return np.array([key in self.store.answers for key in keys], dtype=bool)

    # A language model.

    def _grades(self, pairs: Sequence[Pair]) -> np.ndarray:
        self._announce(pairs)
        answers = self._answers([self._request(*pair) for pair in pairs])
        unread = [index for index, answer in enumerate(answers) if answer and expected_grade(answer) is None]
        if unread and not self.stopped:
            for index, answer in zip(unread, self._answers(self._again(pairs, unread)), strict=True):
                answers[index] = answer or answers[index]
        grades = [None if answer is None else expected_grade(answer) for answer in answers]
        self._report_unreadable(len({pairs[index] for index in unread if grades[index] is None}), len(set(pairs)))
        return np.array([np.nan if grade is None else grade for grade in grades], dtype=np.float32)

    def _request(self, query: str, document: str, again: bool = False) -> ChatRequest:
        return request_for_score(self.service.endpoint, query, document, self.section.answer_tokens, again)

    def _again(self, pairs: Sequence[Pair], indices: Sequence[int]) -> list[ChatRequest]:
        return [self._request(*pairs[index], again=True) for index in indices]

    def _answers(self, requests: Sequence[ChatRequest]) -> list[Answer | None]:
        self.stopped |= ask(self.service, requests, self.store, self.section, self.spent, self.stage).stopped
        return [self.store.answers.get(request.key) for request in requests]

    def _report_unreadable(self, count: int, of: int) -> None:
        self.unreadable += count
        if count > MOST_UNREADABLE * of:
            raise RunError(
                f"{self.service.key}: {count} of {of} answers of {self.service.endpoint.model} hold no grade from 0 to "
                "3; name another model, or raise endpoints.answer_tokens if it thinks before it answers"
            )
        if count:
            console.warn(
                self.stage, f"{count} of {of} answers hold no grade, asked for twice; their pairs are left out"
            )

    # A rerank server.

    def _key(self, pair: Pair) -> str:
        return pair_key(self.service.endpoint, pair[0], pair[1][:DOCUMENT_CHARACTERS])

    def _logits(self, pairs: Sequence[Pair]) -> np.ndarray:
        if missing := self._announce(pairs):
            form = form_of(self.service.endpoint) or self._tried_form()
            if form is not None:
                requests = self._rerank_requests(missing, form)
                self.stopped |= ask(self.service, requests, self.store, self.section, self.spent, self.stage).stopped
        return logits_of([self.store.answers.get(self._key(pair)) for pair in pairs])

    def _rerank_requests(self, pairs: Sequence[Pair], form: Form) -> list[RerankRequest]:
        """Return requests for the pairs, those of a query together."""
        by_query: dict[str, dict[str, None]] = {}
        for query, document in pairs:
            by_query.setdefault(query, {})[document[:DOCUMENT_CHARACTERS]] = None
        size = self.section.documents_per_request
        return [
            RerankRequest(self.service.endpoint, form, query, tuple(list(documents)[start : start + size]))
            for query, documents in by_query.items()
            for start in range(0, len(documents), size)
        ]

    def _tried_form(self) -> Form | None:
        """Return the form that the server accepts, None if a limit was reached; raise RunError if it accepts none."""
        reasons = []
        with sender_of(self.service, self.store, self.section, self.spent) as sender:
            for form in ("texts", "documents"):
                reason = sender.refusal(
                    RerankRequest(self.service.endpoint, form, "a query", ("a document", "another"))
                )
                self.stopped |= sender.stopped
                if self.stopped:
                    return None
                if not reason:
                    where = address(self.service.endpoint)
                    console.stage(self.stage, f"{where} has the form of {FORMS[form]}, tried with one request")
                    return form
                reasons.append(f"{form}: {reason}")
            raise sender.unusable("it accepts neither form of a request", "; ".join(reasons))

    def _announce(self, pairs: Sequence[Pair]) -> list[Pair]:
        """Show the estimate for the pairs that are not stored, and return them, each once."""
        missing = [pair for pair, known in zip(pairs, self.stored(pairs), strict=True) if not known]
        missing = list(dict.fromkeys(missing))
        if missing:
            self.show_estimate(missing)
        return missing
