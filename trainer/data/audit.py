"""What makes numbers doubtful without making them impossible, seen before anything is computed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.data.lengths import LengthCounter, Lengths
from trainer.data.reader import Reader
from trainer.data.records import SPLITS, Judged, Qrels, Record, has_positive
from trainer.data.self_documents import DocumentTexts, find_self_documents
from trainer.data.twins import NEAR_DOCUMENTS, NEAR_WORDS, Twins, hidden_positives

EXAMPLES = 3
FEW_QUERIES = 50
SPREAD = 0.30  # standard deviation of a query's difference in nDCG@10 between two systems; assumed, see below
# Tags that pages and articles hold; names of types in code (`List<String>`) are none of them.
_TAG = re.compile(
    r"</?(?:p|div|span|br|hr|li|ul|ol|table|td|th|tr|h[1-6]|a|b|i|em|strong|img|font|script|style|pre|code)"
    r"(?:\s[^<>]*)?/?>|&(?:nbsp|amp|lt|gt|quot|#\d+);",
    re.IGNORECASE,
)
TAGS = 2  # in one document, before it counts as HTML


@dataclass(frozen=True)
class Summary:
    """What a checked collection holds; `notes` say what was done, `warnings` are for the eye and stop nothing.

    `spare` are the least and the most documents that can serve as negatives of one train query: all but its positives,
    their duplicates and itself.
    """

    documents: int
    queries: int
    judged: dict[str, int]
    notes: list[str]
    warnings: list[str]
    document_lengths: Lengths
    query_lengths: Lengths
    spare: tuple[int, int]
    judged_negatives: int  # of train

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Summary:
        """Make it again from what `dataclasses.asdict` and JSON made of it."""
        lengths = {name: Lengths(**content[name]) for name in ("document_lengths", "query_lengths")}
        return cls(**{**content, **lengths, "spare": tuple(content["spare"])})


class Audit:
    """Watches the records of a check as they stream by, and judges the collection when all were seen."""

    def __init__(self) -> None:
        self.twins = Twins(NEAR_DOCUMENTS, NEAR_WORDS)
        self.documents = LengthCounter()
        self.queries = LengthCounter()
        self.texts = DocumentTexts()
        self.empty: list[str] = []  # ids
        self.html: list[str] = []

    def watch_documents(self, documents: Iterable[Record]) -> None:
        """See every document once."""
        for document in documents:
            self.twins.add(document.passage)
            self.documents.add(document.passage)
            self.texts.add(document.title, document.passage)
            if not document.text.strip():
                self.empty.append(document.id)
            if len(_TAG.findall(document.passage)) >= TAGS:
                self.html.append(document.id)

    def watch_queries(self, queries: Iterable[Record]) -> Iterator[Record]:
        """See every query on its way."""
        for query in queries:
            self.queries.add(query.text)
            yield query

    def summary(self, reader: Reader, qrels: Qrels, texts: Mapping[str, str], notes: list[str]) -> Summary:
        """Judge the whole collection; `notes` are those of reading, `texts` the normalised queries by id."""
        own = find_self_documents(texts, self.texts, reader.document_ids, qrels, reader.section)
        least = reader.section.relevant_from
        return Summary(
            documents=len(reader.document_ids),
            queries=len(reader.query_ids),
            judged={split: len(queries) for split, queries in qrels.items()},
            notes=[*notes, *_self_documents(own, reader), *self.notes(reader, qrels)],
            warnings=self.warnings(reader, qrels, texts),
            document_lengths=self.documents.lengths(),
            query_lengths=self.queries.lengths(),
            spare=self._spare(reader, qrels["train"], own),
            judged_negatives=sum(grade < least for grades in qrels["train"].values() for grade in grades.values()),
        )

    def _spare(self, reader: Reader, train: Judged, own: Mapping[str, Sequence[int]]) -> tuple[int, int]:
        """The least and the most documents that can be negatives of one query, duplicates counted once."""
        least = reader.section.relevant_from
        wanted = {document for grades in train.values() for document, grade in grades.items() if grade >= least}
        rows = {identity: row for row, identity in enumerate(reader.document_ids) if identity in wanted}
        different = self.twins.rows - len(self.twins.leader)
        counts = []
        for query, grades in train.items():
            positives = [rows[document] for document, grade in grades.items() if grade >= least]
            if positives:
                taken = {self.twins.leader.get(row, row) for row in (*positives, *own.get(query, ()))}
                counts.append(different - len(taken))
        return (min(counts), max(counts)) if counts else (0, 0)

    def notes(self, reader: Reader, qrels: Qrels) -> list[str]:
        """What is good to know and no reason to worry."""
        least = reader.section.relevant_from
        judged = sum(map(len, qrels.values()))
        notes = [self._detectable(qrels[split], split, least) for split in ("dev", "test")]
        known = set(_positives(qrels["train"], least))
        tested = set(_positives(qrels["test"], least))
        shared = len(known & tested)
        notes.append(
            f"{shared} of {len(tested)} documents that are positives in test ({100 * shared // len(tested)}%) "
            "are positives in train too: test measures new queries, not new documents"
            if shared
            else "no positive of test is one in train: test measures new queries on new documents"
        )
        if unjudged := len(reader.query_ids) - judged:
            notes.append(f"{unjudged} queries are in no split; nothing is done with them")
        if self.twins.looked_at < self.twins.rows:
            notes.append(
                f"near duplicates were looked for in the first {self.twins.looked_at} documents "
                f"(up to {NEAR_DOCUMENTS:,} documents and {NEAR_WORDS:,} words)"
            )
        return notes

    @staticmethod
    def _detectable(judged: Judged, split: str, relevant_from: int) -> str:
        count = sum(has_positive(grades, relevant_from) for grades in judged.values())
        least = f"{detectable(count):.3f} nDCG@10"
        return f"with {count} {split} queries only differences of {least} or more can be detected (power 80 %)"

    def warnings(self, reader: Reader, qrels: Qrels, texts: Mapping[str, str]) -> list[str]:
        """What makes numbers doubtful; each with a count and a few places."""
        least = reader.section.relevant_from
        return [
            *_shared_queries(reader, qrels, texts),
            *_repeated_queries(reader, qrels, texts),
            *_without_positives(reader, qrels, least),
            *_few_queries(qrels, least),
            *self._duplicates(reader, qrels),
            *self._bodies(reader),
        ]

    def _bodies(self, reader: Reader) -> Iterator[str]:
        for found, what in (
            (self.empty, "have a title and no text; models read the title alone"),
            (self.html, "hold HTML, which models read as text; strip the tags before training"),
        ):
            if found:
                examples = [f"{identity} ({reader.document_place(identity)})" for identity in found]
                yield f"{len(found)} of {self.twins.rows} documents {what}; {_some(examples)}"

    def _duplicates(self, reader: Reader, qrels: Qrels) -> Iterator[str]:
        ids = list(reader.document_ids)
        repeated = [
            f"{ids[row]} = {ids[first]} ({reader.document_place(ids[row])})" for row, first in self.twins.leader.items()
        ]
        if repeated:
            counts = [
                f"{count} documents {what}"
                for count, what in (
                    (self.twins.exact, "repeat another one but for case, punctuation and white space"),
                    (self.twins.near, "nearly repeat another one (8 of 10 word triples are shared)"),
                )
                if count
            ]
            yield f"{' and '.join(counts)}; {_some(repeated)}"
        hidden = hidden_positives(self.twins.groups().values(), ids, qrels, reader.section.relevant_from)
        if hidden:
            shown = [
                f"query {query}: {positive} is relevant, {twin} ({reader.document_place(twin)}) is not judged so"
                for query, positive, twin in hidden
            ]
            yield (
                f"{len(hidden)} times a document is judged relevant and its duplicate is not: training would take it "
                f"for a negative; {_some(shown)}"
            )


def detectable(queries: int) -> float:
    """The smallest true difference in mean nDCG@10 that so many queries show with a power of 80 %.

    2.8 standard errors, of which 1.96 for a two-sided test at 5 % and 0.84 for the power. The standard deviation of the
    differences is taken to be 0.30, about what a reranker and its first stage show with one positive a query; systems
    that are more alike show smaller ones.
    """
    return 2.8 * SPREAD / max(queries, 1) ** 0.5


def _some(examples: Sequence[str]) -> str:
    more = f", and {len(examples) - EXAMPLES} more" if len(examples) > EXAMPLES else ""
    return f"e.g. {'; '.join(examples[:EXAMPLES])}{more}"


def _positives(judged: Judged, relevant_from: int) -> Iterator[str]:
    return (document for grades in judged.values() for document, grade in grades.items() if grade >= relevant_from)


def _self_documents(own: Mapping[str, Sequence[int]], reader: Reader) -> Iterator[str]:
    if not own:
        return
    by_id = [query for query in own if query in reader.document_ids]
    examples = [f"{query} ({reader.query_place(query)})" for query in own]
    yield (
        f"{len(own)} queries are documents themselves ({len(by_id)} by their id, {len(own) - len(by_id)} by their text "
        f"alone); such a document is no candidate and no negative of its query (data.self_documents); {_some(examples)}"
    )


def _shared_queries(reader: Reader, qrels: Qrels, texts: Mapping[str, str]) -> Iterator[str]:
    home: dict[str, tuple[str, str]] = {}
    shared: dict[tuple[str, str], list[str]] = {}
    for split, judged in qrels.items():
        for query in judged:
            first, twin = home.setdefault(texts[query], (split, query))
            if first != split:
                places = f"{reader.query_place(twin)} and {reader.query_place(query)}"
                shared.setdefault((first, split), []).append(f"{texts[query][:60]!r} ({places})")
    for (first, second), examples in shared.items():
        yield (
            f"{len(examples)} query texts stand in {first} and in {second}: what is learned there is measured here; "
            f"{_some(examples)}"
        )


def _repeated_queries(reader: Reader, qrels: Qrels, texts: Mapping[str, str]) -> Iterator[str]:
    """Queries of one split with one text whose judgements differ: each holds a part of what is known."""
    for split, judged in qrels.items():
        first: dict[str, str] = {}
        different = []
        for query, grades in judged.items():
            other = first.setdefault(texts[query], query)
            if other != query and judged[other] != grades:
                different.append(f"{other} and {query} ({reader.query_place(query)})")
        if different:
            yield (
                f"{len(different)} {split} queries repeat the text of another one with other judgements; what is "
                f"relevant for one of them is no negative of the other; {_some(different)}"
            )


def _without_positives(reader: Reader, qrels: Qrels, relevant_from: int) -> Iterator[str]:
    for split in SPLITS:
        without = [query for query, grades in qrels[split].items() if not has_positive(grades, relevant_from)]
        if without:
            examples = [f"{query} ({reader.query_place(query)})" for query in without]
            yield f"{len(without)} {split} queries have no positive and are passed over; {_some(examples)}"


def _few_queries(qrels: Qrels, relevant_from: int) -> Iterator[str]:
    for split in ("dev", "test"):
        count = sum(has_positive(grades, relevant_from) for grades in qrels[split].values())
        if count < FEW_QUERIES:
            yield f"{count} {split} queries can hardly tell two models apart; 100 or more do"
