"""From documents to made queries: requests, answers, filters, and the report."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from trainer.data import SPLITS, Collection
from trainer.data.generated import MadeQuery
from trainer.endpoints.asking import cost_of
from trainer.endpoints.chat import ChatRequest
from trainer.endpoints.grades import ANSWERS
from trainer.endpoints.sender import Spent
from trainer.endpoints.store import Answer
from trainer.errors import RunError
from trainer.generation import filters
from trainer.generation.extraction import cut, extract
from trainer.generation.prompt import kinds_for, queries_in, read_examples, request_for
from trainer.generation.sources import Source
from trainer.recipe.generate import Generate, Kind
from trainer.retriever import Candidates, Embeddings

LOOKED_AT = 5  # documents found for a query in which it is searched word for word
SHOWN = 5  # examples of each reason in the report


def requests_of(
    section: Generate, collection: Collection, sources: Sequence[Source]
) -> list[tuple[ChatRequest, list[Kind]]]:
    """Return the request for each document, with the kinds of queries that it asks for."""
    examples, requests = read_examples(section.examples), []
    for text in collection.passages([source.document for source in sources]):
        # By the text, not by the place, so that another document in the corpus changes no other request.
        kinds = kinds_for(section, int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big"))
        requests.append((request_for(section, text, kinds, examples), kinds))
    return requests


class Draft:
    """Made queries that are not dropped so far, and those that are, by reason."""

    def __init__(self) -> None:
        self.kept: list[MadeQuery] = []
        self.dropped: dict[str, list[MadeQuery]] = {}

    @classmethod
    def read(
        cls,
        collection: Collection,
        sources: Sequence[Source],
        requests: Sequence[tuple[ChatRequest, list[Kind]]],
        answers: Mapping[str, Answer],
    ) -> Draft:
        """Return the queries in the answers, filtered by their texts."""
        draft = cls()
        passages = collection.passages([source.document for source in sources])
        for source, (request, kinds), passage in zip(sources, requests, passages, strict=True):
            answer = answers.get(request.key)
            found = queries_in(answer.text, kinds) if answer else []
            if answer and not found:
                draft._drop(filters.UNREADABLE, MadeQuery(answer.text[: filters.LONGEST], kinds[0], *source))
            for kind, text in found:
                query = MadeQuery(text, kind, *source)
                fault = filters.fault_of(text, passage)
                draft._drop(fault, query) if fault else draft.kept.append(query)
        draft._drop_real(collection)
        return draft

    @classmethod
    def taken(cls, collection: Collection, sources: Sequence[Source], count: int) -> Draft:
        """Return at most `count` texts of each document, filtered by what is left of it without them."""
        draft, queries = cls(), extract(collection, sources, count)
        left = cut(collection, queries)
        for query in queries:
            fault = filters.fault_of(query.text, left[query.document])
            draft._drop(fault, query) if fault else draft.kept.append(query)
        draft._drop_real(collection)
        return draft

    def _drop_real(self, collection: Collection) -> None:
        """Drop queries that repeat a judged one."""
        judged = [query for split in SPLITS for query in collection.qrels[split]]
        real = filters.repeats([query.text for query in self.kept], collection.query_texts(judged))
        self.filter(dict.fromkeys((index for index, same in enumerate(real) if same), filters.REAL))

    def _drop(self, reason: str, query: MadeQuery) -> None:
        self.dropped.setdefault(reason, []).append(query)

    def filter(self, reasons: Mapping[int, str]) -> None:
        """Drop kept queries, given by their index with the reason."""
        kept = []
        for index, query in enumerate(self.kept):
            if index in reasons:
                self._drop(reasons[index], query)
            else:
                kept.append(query)
        self.kept = kept

    def filter_by_search(
        self, section: Generate, candidates: Candidates, vectors: Embeddings | None
    ) -> list[list[int]]:
        """Drop queries whose document the first stage does not find, and all but one of those that ask the same.

        `candidates` and `vectors` are those of the kept queries. Return the documents found for each that is left.
        """
        ranks = filters.ranks_of(candidates, [query.document for query in self.kept])
        worse = filters.duplicates([query.text for query in self.kept], ranks, vectors)
        reasons = {index: filters.DUPLICATE for index, one in enumerate(worse) if one}
        if section.round_trip is not None:
            lost = (index for index, rank in enumerate(ranks) if not 1 <= rank <= section.round_trip)
            reasons |= dict.fromkeys(lost, filters.NOT_FOUND)
        left = [candidates.found(index) for index in range(len(self.kept)) if index not in reasons]
        self.filter(reasons)
        return left

    def filter_repeated(self, collection: Collection, found: Sequence[Sequence[int]]) -> list[list[int]]:
        """Drop queries that are part of one of the first documents that were found for them, besides their own.

        Return the documents found for each query that is left.
        """
        reasons = {}
        for index, (query, rows) in enumerate(zip(self.kept, found, strict=True)):
            others = collection.passages([row for row in rows[:LOOKED_AT] if row != query.document])
            if any(filters.is_copied(query.text, passage) for passage in others):
                reasons[index] = filters.ELSEWHERE
        self.filter(reasons)
        return [list(rows) for index, rows in enumerate(found) if index not in reasons]

    def check(self, grades: Sequence[Mapping[int, int]]) -> None:
        """Apply the grades of each kept query's documents ({row: grade}); without a grade nothing changes."""
        reasons = {
            index: filters.UNANSWERED
            for index, (query, own) in enumerate(zip(self.kept, grades, strict=True))
            if own.get(query.document, ANSWERS) < ANSWERS
        }
        self.kept = [
            query._replace(also=tuple(row for row, grade in own.items() if grade >= ANSWERS and row != query.document))
            for query, own in zip(self.kept, grades, strict=True)
        ]
        self.filter(reasons)

    def require(self, splits: Sequence[str]) -> None:
        """Raise RunError if a split has no query."""
        counts = Counter(query.split for query in self.kept)
        if empty := [split for split in splits if not counts[split]]:
            dropped = ", ".join(f"{len(queries)} {reason}" for reason, queries in self.dropped.items()) or "none"
            raise RunError(
                f"generate: no query is made for {' and '.join(empty)} (dropped: {dropped}); raise generate.documents, "
                "or use another generate.model"
            )

    def report(
        self, collection: Collection, section: Generate, asked: int, answered: int, spent: Spent
    ) -> dict[str, Any]:
        """Return counts and examples."""
        splits, kinds = (Counter(getattr(query, name) for query in self.kept) for name in ("split", "kind"))
        return {
            "model": section.origin,
            "documents": asked,
            "answered": answered,
            "requests": spent.requests,
            "input_tokens": spent.input_tokens,
            "output_tokens": spent.output_tokens,
            "cost": cost_of(section, spent.input_tokens, spent.output_tokens),
            "failures": spent.failures,
            "kept": {split: splits[split] for split in SPLITS if splits[split]},
            "kinds": dict(kinds),
            "several_answers": sum(bool(query.also) for query in self.kept),
            "examples": _examples(self.kept, collection),
            "dropped": {
                reason: {"count": len(queries), "examples": _examples(queries, collection)}
                for reason, queries in self.dropped.items()
            },
        }


def _examples(queries: Sequence[MadeQuery], collection: Collection) -> list[dict[str, str]]:
    step = max(1, len(queries) // SHOWN)
    return [
        {"query": query.text, "kind": query.kind, "document_id": collection.document_ids[query.document]}
        for query in queries[::step][:SHOWN]
    ]
