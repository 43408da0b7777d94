"""What makes numbers doubtful without making them impossible, seen before anything is computed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from trainer.data.lengths import Sample
from trainer.data.reader import Reader
from trainer.data.records import SPLITS, Judged, Qrels, Record, has_positive
from trainer.data.twins import NEAR_DOCUMENTS, NEAR_WORDS, Twins, hidden_positives

EXAMPLES = 3
FEW_QUERIES = 50
SPREAD = 0.30  # standard deviation of a query's difference in nDCG@10 between two systems; assumed, see below


class Audit:
    """Watches the records of a check as they stream by, and judges the collection when all were seen."""

    def __init__(self) -> None:
        self.twins = Twins(NEAR_DOCUMENTS, NEAR_WORDS)
        self.documents = Sample()
        self.queries = Sample()

    def watch_documents(self, documents: Iterable[Record]) -> None:
        """See every document once."""
        for document in documents:
            self.twins.add(document.passage)
            self.documents.add(document.passage)

    def watch_queries(self, queries: Iterable[Record]) -> Iterator[Record]:
        """See every query on its way."""
        for query in queries:
            self.queries.add(query.text)
            yield query

    def notes(self, reader: Reader, qrels: Qrels) -> list[str]:
        """What is good to know and no reason to worry."""
        judged = sum(map(len, qrels.values()))
        notes = [self._detectable(qrels[split], split) for split in ("dev", "test")]
        known = set(_positives(qrels["train"]))
        tested = set(_positives(qrels["test"]))
        shared = len(known & tested)
        notes.append(
            f"{shared} of {len(tested)} documents that are positives in test ({100 * shared // len(tested)}%) "
            "are positives in train too: test says how new queries fare, not how new documents do"
            if shared
            else "no positive of test is one in train: test says how new queries and new documents fare"
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
    def _detectable(judged: Judged, split: str) -> str:
        count = sum(map(has_positive, judged.values()))
        return f"{count} {split} queries show differences of {detectable(count):.3f} nDCG@10 or more (power 80 %)"

    def warnings(self, reader: Reader, qrels: Qrels, texts: Mapping[str, str]) -> list[str]:
        """What makes numbers doubtful; each with a count and a few places."""
        return [
            *_shared_queries(reader, qrels, texts),
            *_without_positives(reader, qrels),
            *_few_queries(qrels),
            *self._duplicates(reader, qrels),
        ]

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
        hidden = hidden_positives(self.twins.groups().values(), ids, qrels)
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


def _positives(judged: Judged) -> Iterator[str]:
    return (document for grades in judged.values() for document, grade in grades.items() if grade > 0)


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


def _without_positives(reader: Reader, qrels: Qrels) -> Iterator[str]:
    for split in SPLITS:
        without = [query for query, grades in qrels[split].items() if not has_positive(grades)]
        if without:
            examples = [f"{query} ({reader.query_place(query)})" for query in without]
            yield f"{len(without)} {split} queries have no positive and are passed over; {_some(examples)}"


def _few_queries(qrels: Qrels) -> Iterator[str]:
    for split in ("dev", "test"):
        count = sum(map(has_positive, qrels[split].values()))
        if count < FEW_QUERIES:
            yield f"{count} {split} queries can hardly tell two models apart; 100 or more do"
