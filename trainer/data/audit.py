"""Counts, notes and warnings about a collection: problems that make metrics unreliable but do not stop a run."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.data.lengths import LengthCounter, Lengths
from trainer.data.near_duplicates import NEAR_DOCUMENTS, NEAR_WORDS, NearDuplicates, unjudged_duplicates
from trainer.data.reader import Reader
from trainer.data.records import SPLITS, Qrels, Record, SplitQrels, has_positive
from trainer.data.self_documents import DocumentTexts, find_self_documents

EXAMPLES = 3
FEW_QUERIES = 50
SPREAD = 0.30  # assumed standard deviation of a query's difference in nDCG@10 between two systems, see `detectable`
# Tags of web pages; type names in code (`List<String>`) are not among them.
_TAG = re.compile(
    r"</?(?:p|div|span|br|hr|li|ul|ol|table|td|th|tr|h[1-6]|a|b|i|em|strong|img|font|script|style|pre|code)"
    r"(?:\s[^<>]*)?/?>|&(?:nbsp|amp|lt|gt|quot|#\d+);",
    re.IGNORECASE,
)
MIN_TAGS = 2  # in one document, for it to count as HTML


@dataclass(frozen=True)
class Summary:
    """Counts of a checked collection, with notes on how it was read and warnings, which do not stop a run.

    `spare` is the lowest and the highest number of documents that can be negatives of a train query: all except its
    positives, their duplicates and the query's own document.
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
        """Return the summary from the JSON form of its `dataclasses.asdict`."""
        lengths = {name: Lengths(**content[name]) for name in ("document_lengths", "query_lengths")}
        return cls(**{**content, **lengths, "spare": tuple(content["spare"])})


class Audit:
    """Collects statistics while the records are read once, and summarises the collection afterwards."""

    def __init__(self) -> None:
        self.duplicates = NearDuplicates(NEAR_DOCUMENTS, NEAR_WORDS)
        self.documents = LengthCounter()
        self.queries = LengthCounter()
        self.texts = DocumentTexts()
        self.empty: list[str] = []  # ids
        self.html: list[str] = []

    def watch_documents(self, documents: Iterable[Record]) -> None:
        """Read all documents."""
        for document in documents:
            self.duplicates.add(document.passage)
            self.documents.add(document.passage)
            self.texts.add(document.title, document.passage)
            if not document.text.strip():
                self.empty.append(document.id)
            if len(_TAG.findall(document.passage)) >= MIN_TAGS:
                self.html.append(document.id)

    def watch_queries(self, queries: Iterable[Record]) -> Iterator[Record]:
        """Pass the queries on while counting them."""
        for query in queries:
            self.queries.add(query.text)
            yield query

    def summary(self, reader: Reader, qrels: SplitQrels, texts: Mapping[str, str], notes: list[str]) -> Summary:
        """Return the summary; `notes` are those of the reader, `texts` the normalised queries by id."""
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

    def _spare(self, reader: Reader, train: Qrels, own: Mapping[str, Sequence[int]]) -> tuple[int, int]:
        """Return the lowest and the highest number of possible negatives of a query, duplicates counted once."""
        least = reader.section.relevant_from
        wanted = {document for grades in train.values() for document, grade in grades.items() if grade >= least}
        rows = {identity: row for row, identity in enumerate(reader.document_ids) if identity in wanted}
        different = self.duplicates.rows - len(self.duplicates.leader)
        counts = []
        for query, grades in train.items():
            positives = [rows[document] for document, grade in grades.items() if grade >= least]
            if positives:
                taken = {self.duplicates.leader.get(row, row) for row in (*positives, *own.get(query, ()))}
                counts.append(different - len(taken))
        return (min(counts), max(counts)) if counts else (0, 0)

    def notes(self, reader: Reader, qrels: SplitQrels) -> list[str]:
        """Return information about the splits that needs no warning."""
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
            else "no document is a positive in both test and train: test measures new queries on new documents"
        )
        if unjudged := len(reader.query_ids) - judged:
            notes.append(f"{unjudged} queries are in no split and are not used")
        if self.duplicates.compared < self.duplicates.rows:
            notes.append(
                f"only the first {self.duplicates.compared} documents were searched for near-duplicates "
                f"(up to {NEAR_DOCUMENTS:,} documents and {NEAR_WORDS:,} words)"
            )
        return notes

    @staticmethod
    def _detectable(judged: Qrels, split: str, relevant_from: int) -> str:
        count = sum(has_positive(grades, relevant_from) for grades in judged.values())
        least = f"{detectable(count):.3f} nDCG@10"
        return f"with {count} {split} queries only differences of {least} or more can be detected (power 80 %)"

    def warnings(self, reader: Reader, qrels: SplitQrels, texts: Mapping[str, str]) -> list[str]:
        """Return the problems that make metrics unreliable, each with a count and a few examples."""
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
        for ids, problem in (
            (self.empty, "have a title and no text; models read the title alone"),
            (self.html, "hold HTML, which models read as text; strip the tags before training"),
        ):
            if ids:
                examples = [f"{identity} ({reader.document_location(identity)})" for identity in ids]
                yield f"{len(ids)} of {self.duplicates.rows} documents {problem}; {_some(examples)}"

    def _duplicates(self, reader: Reader, qrels: SplitQrels) -> Iterator[str]:
        ids = list(reader.document_ids)
        repeated = [
            f"{ids[row]} = {ids[first]} ({reader.document_location(ids[row])})"
            for row, first in self.duplicates.leader.items()
        ]
        if repeated:
            counts = [
                f"{count} documents {relation}"
                for count, relation in (
                    (self.duplicates.exact, "repeat another one except for case, punctuation and white space"),
                    (self.duplicates.near, "nearly repeat another one (8 of 10 word triples are shared)"),
                )
                if count
            ]
            yield f"{' and '.join(counts)}; {_some(repeated)}"
        hidden = unjudged_duplicates(self.duplicates.groups().values(), ids, qrels, reader.section.relevant_from)
        if hidden:
            shown = [
                f"query {query}: {positive} is relevant, {duplicate} ({reader.document_location(duplicate)}) is not"
                for query, positive, duplicate in hidden
            ]
            yield (
                f"{len(hidden)} times a document is judged relevant and its duplicate is not, so it could become a "
                f"false negative in training; {_some(shown)}"
            )


def detectable(queries: int, spread: float = SPREAD) -> float:
    """Return the smallest true difference in mean nDCG@10 that this number of queries detects with a power of 80 %.

    It is 2.8 standard errors: 1.96 for a two-sided test at 5 % and 0.84 for the power. `spread` is the standard
    deviation of the queries' differences; the default of 0.30 is about that between a reranker and its first stage with
    one positive per query. It is smaller for more similar systems.
    """
    return 2.8 * spread / max(queries, 1) ** 0.5


def _some(examples: Sequence[str]) -> str:
    more = f", and {len(examples) - EXAMPLES} more" if len(examples) > EXAMPLES else ""
    return f"e.g. {'; '.join(examples[:EXAMPLES])}{more}"


def _positives(judged: Qrels, relevant_from: int) -> Iterator[str]:
    return (document for grades in judged.values() for document, grade in grades.items() if grade >= relevant_from)


def _self_documents(own: Mapping[str, Sequence[int]], reader: Reader) -> Iterator[str]:
    if not own:
        return
    by_id = [query for query in own if query in reader.document_ids]
    examples = [f"{query} ({reader.query_location(query)})" for query in own]
    yield (
        f"{len(own)} queries are documents themselves ({len(by_id)} by their id, {len(own) - len(by_id)} by their text "
        f"alone); such a document is neither a candidate nor a negative of its query "
        f"(data.self_documents); {_some(examples)}"
    )


def _shared_queries(reader: Reader, qrels: SplitQrels, texts: Mapping[str, str]) -> Iterator[str]:
    first_seen: dict[str, tuple[str, str]] = {}
    shared: dict[tuple[str, str], list[str]] = {}
    for split, judged in qrels.items():
        for query in judged:
            first, other = first_seen.setdefault(texts[query], (split, query))
            if first != split:
                locations = f"{reader.query_location(other)} and {reader.query_location(query)}"
                shared.setdefault((first, split), []).append(f"{texts[query][:60]!r} ({locations})")
    for (first, second), examples in shared.items():
        yield (
            f"{len(examples)} query texts are in both {first} and {second}, so {second} measures queries that {first} "
            f"has seen; {_some(examples)}"
        )


def _repeated_queries(reader: Reader, qrels: SplitQrels, texts: Mapping[str, str]) -> Iterator[str]:
    """Yield a warning for each split in which queries with the same text have different judgements."""
    for split, judged in qrels.items():
        first: dict[str, str] = {}
        different = []
        for query, grades in judged.items():
            other = first.setdefault(texts[query], query)
            if other != query and judged[other] != grades:
                different.append(f"{other} and {query} ({reader.query_location(query)})")
        if different:
            yield (
                f"{len(different)} {split} queries repeat the text of another one with other judgements; positives of "
                f"one of them are not used as negatives of the other; {_some(different)}"
            )


def _without_positives(reader: Reader, qrels: SplitQrels, relevant_from: int) -> Iterator[str]:
    for split in SPLITS:
        without = [query for query, grades in qrels[split].items() if not has_positive(grades, relevant_from)]
        if without:
            examples = [f"{query} ({reader.query_location(query)})" for query in without]
            yield f"{len(without)} {split} queries have no positive and are left out; {_some(examples)}"


def _few_queries(qrels: SplitQrels, relevant_from: int) -> Iterator[str]:
    for split in ("dev", "test"):
        count = sum(has_positive(grades, relevant_from) for grades in qrels[split].values())
        if count < FEW_QUERIES:
            yield f"{count} {split} queries are too few to compare models reliably; use 100 or more"
