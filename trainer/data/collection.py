"""The collection that the stages read: Arrow files, mapped into memory, with row numbers in place of ids."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.data.audit import Audit, Summary
from trainer.data.earlier_splits import EarlierSplits
from trainer.data.memory import in_memory, write_beir
from trainer.data.near_duplicates import BUILD_DOCUMENTS, BUILD_WORDS, NearDuplicates
from trainer.data.qrels import needed_splits, reader_of, split_qrels
from trainer.data.reader import Reader
from trainer.data.records import SPLITS, Record, has_positive, normalised
from trainer.data.self_documents import DocumentTexts, find_self_documents
from trainer.recipe import Data
from trainer.runtime.machine import explained

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset

CLICKED = "clicks.json"  # what became of a click log
ROWS_AT_ONCE = 1024  # documents in memory at once while all of them are compared


def check_collection(
    section: Data, earlier: EarlierSplits | None = None, needed: Sequence[str] | None = None
) -> Summary:
    """Read the complete collection once and return its summary; raises DataError with all problems.

    `earlier` are the splits of the run that the base model came from, which the queries keep. The splits of `needed`
    (None: those of every collection) must have positives.
    """
    reader, audit, texts = reader_of(section), Audit(), {}
    audit.watch_documents(reader.documents())
    for query in audit.watch_queries(reader.queries()):
        texts[query.id] = normalised(query.text)
    needed = needed_splits(section) if needed is None else needed
    qrels, notes = split_qrels(reader, section, texts, needed, earlier)
    return audit.summary(reader, qrels, texts, notes)


def build_collection(
    section: Data, folder: Path, earlier: EarlierSplits | None = None, needed: Sequence[str] | None = None
) -> Collection:
    """Check the collection and write it as Arrow files under `folder`; raises DataError with all problems.

    The arguments are those of `check_collection`.
    """
    return _build(reader_of(section), folder, needed_splits(section) if needed is None else needed, earlier)


def _build(reader: Reader, folder: Path, needed: Sequence[str], earlier: EarlierSplits | None = None) -> Collection:
    """Write the reader's records as Arrow files; the splits of `needed` must have positives."""
    section, twins, texts, read = reader.section, NearDuplicates(BUILD_DOCUMENTS, BUILD_WORDS), {}, DocumentTexts()
    folder.mkdir(parents=True, exist_ok=True)

    def documents() -> Iterator[Record]:
        for document in reader.documents():
            twins.add(document.passage)
            read.add(document.title, document.passage)
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
    qrels, _ = split_qrels(reader, section, texts, needed, earlier)
    document_rows = {identity: row for row, identity in enumerate(reader.document_ids)}
    query_rows = {identity: row for row, identity in enumerate(reader.query_ids)}
    judgements = (
        {"split": split, "query": query_rows[query], "document": document_rows[document], "grade": grade}
        for split, judged in qrels.items()
        for query, grades in judged.items()
        for document, grade in grades.items()
    )
    _write(folder / "qrels.arrow", judgements, split=str, query=int, document=int, grade=int)
    own = find_self_documents(texts, read, reader.document_ids, qrels, section)
    pairs = ({"query": query_rows[query], "document": row} for query, rows in own.items() for row in rows)
    _write(folder / "self_documents.arrow", pairs, query=int, document=int)
    settings = {key: getattr(section, key) for key in ("relevant_from", "self_documents")}
    (folder / "settings.json").write_text(json.dumps(settings) + "\n", encoding="utf-8")
    if reader.clicked is not None:
        (folder / CLICKED).write_text(json.dumps(reader.clicked) + "\n", encoding="utf-8")
    return Collection.open(folder)


def _write(path: Path, rows: Iterable[Mapping[str, str | int]], **columns: type) -> None:
    """Stream rows into one Arrow file; only one batch is in memory."""
    from datasets import Features, Value
    from datasets.arrow_writer import ArrowWriter

    features = Features({name: Value("string" if kind is str else "int64") for name, kind in columns.items()})
    with ArrowWriter(path=str(path), features=features) as writer:
        for row in rows:
            writer.write(dict(row))
        writer.finalize()


@dataclass(frozen=True)
class Collection:
    """A checked collection: documents, queries and qrels, memory-mapped.

    `documents` has the columns id, title and passage (the title and the text), `queries` id and text; `qrels[split]` is
    {query row: {document row: grade}}, with the queries in the order of the qrels. `twins` maps a document that
    (nearly) repeats another one to the first with that text. `self_documents` maps a query row to the documents that
    are the query itself, which are not its candidates. Grades from `relevant_from` on mean relevant. `made` are the
    query rows that were made from documents (the stage generate). `cut` are documents that some of these were taken
    from: {document row: its title and text without them}, which is what models read with made queries. `section` is the
    data section for a recipe, which only a collection from memory has.
    """

    documents: Dataset
    queries: Dataset
    qrels: dict[str, dict[int, dict[int, int]]]
    twins: dict[int, int]
    self_documents: dict[int, list[int]] = field(default_factory=dict)
    relevant_from: int = 1
    excludes_self: bool = True
    section: Data | None = None
    made: frozenset[int] = frozenset()
    cut: Mapping[int, str] = field(default_factory=dict)

    @classmethod
    @explained
    def from_memory(
        cls,
        documents: Mapping[str, str | Mapping[str, str]],
        queries: Mapping[str, str],
        qrels: Mapping[str, Mapping[str, Any]],
        **settings: Any,
    ) -> Collection:
        """Return a checked collection made of plain dicts, as ir_measures takes them.

        `documents` are {id: text} or {id: {"title": text, "text": text}}, `queries` {id: text}. `qrels` are {query id:
        {document id: grade}}, from which dev and test are split off by a hash of the query's text as with files, or
        {split: {query id: {document id: grade}}} with the splits train, dev and test. `settings` are keys of a recipe's
        section `data`, such as relevant_from=2 or dev_share=0.2. Raises DataError with all problems.

        The dicts are copied to temporary files, which are deleted with the last object that uses them.
        """
        reader = in_memory(documents, queries, qrels, settings)
        files = reader.section.path
        assert files is not None
        collection = _build(reader, files.with_name("arrow"), needed=tuple(reader.sources.qrels))
        write_beir(reader.sources, files)
        return replace(collection, section=reader.section)

    @classmethod
    def open(cls, folder: Path) -> Collection:
        """Map the files that `build_collection` wrote."""
        from datasets import Dataset

        documents, queries, judgements, twins, pairs = (
            Dataset.from_file(str(folder / f"{name}.arrow"))
            for name in ("documents", "queries", "qrels", "twins", "self_documents")
        )
        qrels: dict[str, dict[int, dict[int, int]]] = {split: {} for split in SPLITS}
        columns = (judgements[name][:] for name in ("split", "query", "document", "grade"))
        for split, query, document, grade in zip(*columns, strict=True):
            qrels[split].setdefault(query, {})[document] = grade
        own: dict[int, list[int]] = {}
        for query, document in zip(pairs["query"][:], pairs["document"][:], strict=True):
            own.setdefault(query, []).append(document)
        settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
        return cls(
            documents,
            queries,
            qrels,
            dict(zip(twins["row"][:], twins["first"][:], strict=True)),
            own,
            settings["relevant_from"],
            settings["self_documents"] == "exclude",
        )

    def with_queries(self, texts: Mapping[str, str]) -> Collection:
        """Return the collection with more queries (texts by id) after its own; they have no judgements."""
        from datasets import Dataset, concatenate_datasets

        columns = {"id": list(texts), "text": list(texts.values())}
        more = Dataset.from_dict(columns, features=self.queries.features)
        rows = {identity: len(self.queries) + place for place, identity in enumerate(texts)}
        own = {rows[identity]: found for identity, found in self._documents_with_text(texts).items()}
        queries = concatenate_datasets([self.queries, more])
        return replace(self, queries=queries, self_documents=self.self_documents | own)

    def _documents_with_text(self, texts: Mapping[str, str]) -> dict[str, list[int]]:
        """Return the document rows that equal one of the texts, by its id; none if such documents are kept."""
        if not self.excludes_self:
            return {}
        read = DocumentTexts()
        for start in range(0, len(self.documents), ROWS_AT_ONCE):
            rows = self.documents[start : start + ROWS_AT_ONCE]
            for title, passage in zip(rows["title"], rows["passage"], strict=True):
                read.add(title, passage)
        return read.find(texts)

    def query_texts(self, rows: Sequence[int]) -> list[str]:
        """Return the texts of query rows."""
        return self.queries.select(rows)["text"][:]

    def passages(self, rows: Sequence[int]) -> list[str]:
        """Return title and text of document rows, which is what models read; rows of `read_with` are allowed."""
        return (self._whole_and_cut if self.cut else self.documents).select(rows)["passage"][:]

    def read_with(self, query: int, document: int) -> int:
        """Return the row of what models read of a document with a query: its own, or that of its cut text.

        Cut texts have rows after those of all documents, which `passages` knows and nothing else.
        """
        return self._cut_rows.get(document, document) if query in self.made else document

    def as_made_queries_find_it(self) -> Collection:
        """Return the collection in which documents that queries were taken from have their cut text."""
        import numpy as np

        rows = np.arange(len(self.documents))
        rows[list(self.cut)] = len(self.documents) + np.arange(len(self.cut))
        return replace(self, documents=self._whole_and_cut.select(rows), cut={})

    @cached_property
    def _cut_rows(self) -> dict[int, int]:
        return {row: len(self.documents) + place for place, row in enumerate(self.cut)}

    @cached_property
    def _whole_and_cut(self) -> Dataset:
        """The documents, and after them the cut ones."""
        from datasets import Dataset, concatenate_datasets

        whole = self.documents.select(list(self.cut))
        columns = {"id": whole["id"][:], "title": [""] * len(whole), "passage": list(self.cut.values())}
        return concatenate_datasets([self.documents, Dataset.from_dict(columns, features=self.documents.features)])

    @cached_property
    def first_alike(self) -> np.ndarray:
        """For each document row (int32) the first document with (nearly) the same text, usually itself."""
        import numpy as np

        rows = np.arange(len(self.documents), dtype=np.int32)
        rows[list(self.twins)] = list(self.twins.values())
        return rows

    def answerable(self, split: str) -> list[int]:
        """Return the query rows of a split with a positive; only these are used in training and evaluation."""
        return [query for query, grades in self.qrels[split].items() if has_positive(grades, self.relevant_from)]

    def is_made(self, split: str) -> bool:
        """Return whether a split has queries, and all of them are made from documents."""
        return bool(self.qrels[split]) and self.made.issuperset(self.qrels[split])

    def positives(self, split: str, query: int) -> list[int]:
        """Return the document rows that are judged relevant for a query."""
        return [row for row, grade in self.qrels[split][query].items() if grade >= self.relevant_from]

    def relevant(self, split: str) -> dict[int, dict[int, int]]:
        """Return the judgements of relevant documents: {query row: {document row: grade}}."""
        return {
            query: {row: grade for row, grade in grades.items() if grade >= self.relevant_from}
            for query, grades in self.qrels[split].items()
        }

    def judged_negatives(self, split: str, query: int) -> list[int]:
        """Return the document rows that are judged not relevant for a query.

        Documents that are the query itself are left out, and those that are relevant for another query with its text.
        """
        passed = {*self.self_documents.get(query, ()), *self.positives_of_equal_queries(split, query)}
        grades = self.qrels[split][query]
        return [row for row, grade in grades.items() if grade < self.relevant_from and row not in passed]

    def positives_of_equal_queries(self, split: str, query: int) -> list[int]:
        """Return the document rows that are judged relevant for other queries of the split with the same text."""
        others = (other for other in self._equal_queries[split].get(query, ()) if other != query)
        return [row for other in others for row in self.positives(split, other)]

    @cached_property
    def _equal_queries(self) -> dict[str, dict[int, list[int]]]:
        """{split: {query row: all query rows with its text}}, of queries that share their text."""
        found: dict[str, dict[int, list[int]]] = {}
        for split, judged in self.qrels.items():
            rows: dict[str, list[int]] = {}
            for query, text in zip(judged, self.query_texts(list(judged)), strict=True):
                rows.setdefault(normalised(text), []).append(query)
            found[split] = {query: alike for alike in rows.values() if len(alike) > 1 for query in alike}
        return found

    def named_qrels(self, split: str) -> dict[str, dict[str, int]]:
        """Return {query id: {document id: grade}} of the answerable queries, as ir_measures takes it."""
        return {
            self.query_ids[query]: {
                self.document_ids[document]: grade for document, grade in self.qrels[split][query].items()
            }
            for query in self.answerable(split)
        }

    @cached_property
    def query_ids(self) -> list[str]:
        """The id of each query row."""
        return self.queries["id"][:]

    @cached_property
    def document_ids(self) -> list[str]:
        """The id of each document row."""
        return self.documents["id"][:]
