"""The collection as the stages see it: Arrow files, mapped into memory, in row numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from trainer.data.audit import Audit
from trainer.data.pairs import PairReader
from trainer.data.reader import Reader
from trainer.data.records import SPLITS, Qrels, Record, normalised
from trainer.data.reviews import overrule
from trainer.data.sources import find_sources
from trainer.data.splits import require_positives, split_off
from trainer.data.twins import BUILD_DOCUMENTS, BUILD_WORDS, Twins
from trainer.recipe import Data

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset


@dataclass
class Summary:
    """What a checked collection holds; `notes` say what was done, `warnings` are for the eye and stop nothing."""

    documents: int
    queries: int
    judged: dict[str, int]
    notes: list[str]
    warnings: list[str]
    sample: SampledTexts


class SampledTexts(NamedTuple):
    """Some documents and queries, for what a tokenizer has to say about them."""

    documents: list[str]
    queries: list[str]


def check_collection(section: Data) -> Summary:
    """Read the whole collection once; raises DataError with every fault."""
    reader, audit, texts = _reader(section), Audit(), {}
    audit.watch_documents(reader.documents())
    for query in audit.watch_queries(reader.queries()):
        texts[query.id] = normalised(query.text)
    qrels, notes = _qrels(reader, section, texts)
    return Summary(
        documents=len(reader.document_ids),
        queries=len(reader.query_ids),
        judged={split: len(queries) for split, queries in qrels.items()},
        notes=notes + audit.notes(reader, qrels),
        warnings=audit.warnings(reader, qrels, texts),
        sample=SampledTexts(audit.documents.texts, audit.queries.texts),
    )


def _reader(section: Data) -> Reader:
    sources = find_sources(section)
    return PairReader(sources, section) if sources.pairs else Reader(sources, section)


def _qrels(reader: Reader, section: Data, texts: Mapping[str, str]) -> tuple[Qrels, list[str]]:
    """The judgements of all three splits, reviews included, and what was done for them; raises every fault."""
    qrels = reader.qrels()
    given = {split: tables[0].name for split, tables in reader.sources.judged.items()}
    notes = split_off(qrels, texts, section)
    if section.judgements is not None:
        notes.append(overrule(section.judgements, qrels, reader))
    reader.faults.stop()  # a split may be empty only because of what is told here
    require_positives(qrels, given, section, reader.faults)
    reader.faults.stop()
    return {split: qrels[split] for split in SPLITS}, notes


def build_collection(section: Data, folder: Path) -> Collection:
    """Check the collection and write it as Arrow files under `folder`; raises DataError with every fault."""
    reader, twins, texts = _reader(section), Twins(BUILD_DOCUMENTS, BUILD_WORDS), {}
    folder.mkdir(parents=True, exist_ok=True)

    def documents() -> Iterator[Record]:
        for document in reader.documents():
            twins.add(document.passage)
            yield document

    _write(
        folder / "documents.arrow",
        ({"id": document.id, "title": document.title, "passage": document.passage} for document in documents()),
        id=str,
        title=str,
        passage=str,
    )
    leaders = ({"row": row, "first": first} for row, first in twins.leader.items())
    _write(folder / "twins.arrow", leaders, row=int, first=int)

    def queries() -> Iterator[Record]:
        for query in reader.queries():
            texts[query.id] = normalised(query.text)
            yield query

    _write(folder / "queries.arrow", ({"id": query.id, "text": query.text} for query in queries()), id=str, text=str)
    qrels, _ = _qrels(reader, section, texts)
    document_rows = {identity: row for row, identity in enumerate(reader.document_ids)}
    query_rows = {identity: row for row, identity in enumerate(reader.query_ids)}
    judgements = (
        {"split": split, "query": query_rows[query], "document": document_rows[document], "grade": grade}
        for split, judged in qrels.items()
        for query, grades in judged.items()
        for document, grade in grades.items()
    )
    _write(folder / "qrels.arrow", judgements, split=str, query=int, document=int, grade=int)
    return Collection.open(folder)


def _write(path: Path, rows: Iterable[Mapping[str, str | int]], **columns: type) -> None:
    """Stream rows into one Arrow file; nothing but a writer's batch is held in memory."""
    from datasets import Features, Value
    from datasets.arrow_writer import ArrowWriter

    features = Features({name: Value("string" if kind is str else "int64") for name, kind in columns.items()})
    with ArrowWriter(path=str(path), features=features) as writer:
        for row in rows:
            writer.write(dict(row))
        writer.finalize()


@dataclass(frozen=True)
class Collection:
    """A checked collection, memory-mapped.

    `documents` has the columns id, title and passage (the title and the text), `queries` id and text; `qrels[split]` is
    {query row: {document row: grade}}, with the queries in the order in which the qrels file names them first. `twins`
    maps a document that (nearly) repeats another one to the first with that text.
    """

    documents: Dataset
    queries: Dataset
    qrels: dict[str, dict[int, dict[int, int]]]
    twins: dict[int, int]

    @classmethod
    def open(cls, folder: Path) -> Collection:
        """Map what `build_collection` wrote."""
        from datasets import Dataset

        documents, queries, judgements, twins = (
            Dataset.from_file(str(folder / f"{name}.arrow")) for name in ("documents", "queries", "qrels", "twins")
        )
        qrels: dict[str, dict[int, dict[int, int]]] = {split: {} for split in SPLITS}
        columns = (judgements[name][:] for name in ("split", "query", "document", "grade"))
        for split, query, document, grade in zip(*columns, strict=True):
            qrels[split].setdefault(query, {})[document] = grade
        return cls(documents, queries, qrels, dict(zip(twins["row"][:], twins["first"][:], strict=True)))

    def with_queries(self, texts: Mapping[str, str]) -> Collection:
        """The same with more queries (texts by id), in the rows behind the others; nothing is judged for them."""
        from datasets import Dataset, concatenate_datasets

        columns = {"id": list(texts), "text": list(texts.values())}
        more = Dataset.from_dict(columns, features=self.queries.features)
        return replace(self, queries=concatenate_datasets([self.queries, more]))

    def query_texts(self, rows: Sequence[int]) -> list[str]:
        """The texts of query rows."""
        return self.queries.select(rows)["text"][:]

    def passages(self, rows: Sequence[int]) -> list[str]:
        """What is read of document rows: title and text."""
        return self.documents.select(rows)["passage"][:]

    @cached_property
    def first_alike(self) -> np.ndarray:
        """For each document row (int32) the first document with (nearly) the same text, mostly itself."""
        import numpy as np

        rows = np.arange(len(self.documents), dtype=np.int32)
        rows[list(self.twins)] = list(self.twins.values())
        return rows

    def answerable(self, split: str) -> list[int]:
        """Query rows of the split with at least one positive: only they can be measured or learned from."""
        return [query for query, grades in self.qrels[split].items() if any(grade > 0 for grade in grades.values())]

    def named_qrels(self, split: str) -> dict[str, dict[str, int]]:
        """The answerable queries' judgements with ids, as metrics want them."""
        return {
            self.query_ids[query]: {self.document_ids[document]: grade for document, grade in grades.items()}
            for query, grades in self.qrels[split].items()
            if any(grade > 0 for grade in grades.values())
        }

    @cached_property
    def query_ids(self) -> list[str]:
        """Id of each query row."""
        return self.queries["id"][:]

    @cached_property
    def document_ids(self) -> list[str]:
        """Id of each document row."""
        return self.documents["id"][:]
