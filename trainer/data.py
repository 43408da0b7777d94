"""The collection: documents, queries and relevance judgements (qrels) in BEIR layout.

`check_collection` reads every line once, without heavy imports, and lists every fault with file and line.
`build_collection` does the same on its way to Arrow files; `Collection` maps those into memory, so a corpus larger
than memory is no problem. Everything behind this module speaks in row numbers; ids come back at the very end.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from trainer.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

_SURROGATE = re.compile("[\ud800-\udfff]")
SPLITS = ("train", "dev", "test")
SHOWN = 10  # faults of one kind that are listed; the rest are counted


class Record(NamedTuple):
    """A document or a query (which has no title)."""

    id: str
    title: str
    text: str

    @property
    def passage(self) -> str:
        """What models read: title and text."""
        return f"{self.title} {self.text}".strip()


class Judgement(NamedTuple):
    """One line of qrels; grade 0 says that somebody looked and found the document not relevant."""

    query: str
    document: str
    grade: int


@dataclass
class Faults:
    """Faults by kind, so that ten thousand alike do not bury the one that differs."""

    kinds: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, kind: str, place: str, message: str) -> None:
        """Note one fault; `place` is file:line."""
        self.kinds[kind].append(f"{place}: {message}")

    def lines(self) -> list[str]:
        """All kinds, each with its first ten places and the count of the rest."""
        shown = []
        for kind, faults in self.kinds.items():
            shown += faults[:SHOWN]
            if len(faults) > SHOWN:
                shown.append(f"... and {len(faults) - SHOWN} more: {kind}")
        return shown

    def stop(self) -> None:
        """Raise DataError if anything was found."""
        if self.kinds:
            raise DataError(self.lines())


@dataclass
class Summary:
    """What a checked collection holds; `warnings` are for the eye and stop nothing."""

    documents: int
    queries: int
    judged: dict[str, int]
    warnings: list[str]


class Files(NamedTuple):
    """The files of a BEIR folder."""

    corpus: Path
    queries: Path
    qrels: dict[str, Path]

    @property
    def all(self) -> list[Path]:
        """Every file, in a fixed order."""
        return [self.corpus, self.queries, *self.qrels.values()]


def find_files(folder: Path) -> Files:
    """Locate corpus, queries and the three qrels files, each plain or .gz; raises DataError naming all that miss."""
    if not folder.is_dir():
        raise DataError(
            f"{folder}: no such folder; data.path names a folder with corpus.jsonl, queries.jsonl and qrels/"
        )
    missing = []

    def find(name: str) -> Path:
        plain, packed = folder / name, folder / f"{name}.gz"
        if plain.is_file() and packed.is_file():
            missing.append(f"{plain}: stands beside {packed.name}; keep one of them")
        if not plain.is_file() and not packed.is_file():
            beside = sorted(path.name for path in plain.parent.glob("*")) if plain.parent.is_dir() else []
            missing.append(f"{plain}: missing (plain or .gz); {plain.parent} holds {', '.join(beside) or 'nothing'}")
        return plain if plain.is_file() else packed

    files = Files(find("corpus.jsonl"), find("queries.jsonl"), {split: find(f"qrels/{split}.tsv") for split in SPLITS})
    if missing:
        raise DataError(missing)
    return files


def fingerprint_files(folder: Path) -> str:
    """sha256 over the content of all files of the collection."""
    digest = hashlib.sha256()
    for path in find_files(folder).all:
        content = hashlib.sha256()  # each by itself: a line moved to the next file is a change
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                content.update(block)
        digest.update(content.digest())
    return digest.hexdigest()


def check_collection(folder: Path) -> Summary:
    """Read the whole collection once; raises DataError with every fault."""
    return _Reader(find_files(folder)).check()


class _Reader:
    """Reads the files line by line, handing out good records and noting every fault."""

    def __init__(self, files: Files) -> None:
        self.files = files
        self.faults = Faults()
        self.document_ids: dict[str, int] = {}
        self.query_ids: dict[str, int] = {}
        self.query_texts: dict[str, str] = {}

    def check(self) -> Summary:
        for _ in self.documents():
            pass
        for query in self.queries():
            self.query_texts[query.id] = " ".join(query.text.lower().split())
        qrels = self.qrels()
        self.faults.stop()
        return Summary(
            documents=len(self.document_ids),
            queries=len(self.query_ids),
            judged={split: len(queries) for split, queries in qrels.items()},
            warnings=self._warnings(qrels),
        )

    def documents(self) -> Iterator[Record]:
        return self._records(self.files.corpus, self.document_ids, "document")

    def queries(self) -> Iterator[Record]:
        return self._records(self.files.queries, self.query_ids, "query")

    def _records(self, path: Path, seen: dict[str, int], what: str) -> Iterator[Record]:
        """Records of one JSONL file; `seen` maps the id to its line, and thereby to its row (ids keep their order)."""
        for number, line in self._lines(path):
            if not line.strip():
                continue
            record = self._record(f"{path}:{number}", line, what)
            if record is None:
                continue
            if record.id in seen:
                message = f"{what} id {record.id!r} stands on line {seen[record.id]} already; ids must be unique"
                self.faults.add(f"duplicate {what} ids", f"{path}:{number}", message)
                continue
            seen[record.id] = number
            yield record
        if not seen:
            self.faults.add(f"no {what}", str(path), f"holds no readable {what}; one JSON object a line is expected")

    def _record(self, place: str, line: str, what: str) -> Record | None:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else error
            self.faults.add("broken JSON", place, f"not valid JSON ({reason}): {line[:60]!r}")
            return None
        if not isinstance(row, dict):
            self.faults.add("broken JSON", place, f"a JSON object is expected, got {line[:60]!r}")
            return None
        identity, title, text = row.get("_id"), row.get("title"), row.get("text")
        title = "" if title is None else title
        if isinstance(identity, bool) or not isinstance(identity, str | int) or not str(identity).strip():
            message = f'needs "_id" as a text or whole number, got {identity!r}; keys here: {", ".join(row)}'
            self.faults.add("missing ids", place, message)
            return None
        if str(identity).split() != [str(identity)]:
            message = f'"_id" {identity!r} holds white space, which separates the columns of run files; replace it'
            self.faults.add("ids with white space", place, message)
            return None
        if not isinstance(title, str) or not isinstance(text, str):
            key, value = ("text", text) if isinstance(title, str) else ("title", title)
            message = f'{what} {identity!r} needs "{key}" as a text, got {value!r:.60}; keys here: {", ".join(row)}'
            self.faults.add("missing texts", place, message)
            return None
        if not f"{identity}{title}{text}".isascii() and _SURROGATE.search(f"{identity}{title}{text}"):
            message = f"{what} {identity!r} holds half a character (a lone surrogate, \\ud800 to \\udfff); remove it"
            self.faults.add("half characters", place, message)
            return None
        record = Record(str(identity), title if what == "document" else "", text)
        if not record.passage:
            message = f"{what} {record.id!r} is empty; give it a text, or remove it and its judgements"
            self.faults.add(f"empty {what} texts", place, message)
        return record

    def qrels(self) -> dict[str, dict[str, dict[str, int]]]:
        """{split: {query id: {document id: grade}}}; call it after documents and queries were read."""
        found: dict[str, dict[str, dict[str, int]]] = {}
        split_of: dict[str, tuple[str, str]] = {}
        for split, path in self.files.qrels.items():
            judged: dict[str, dict[str, int]] = {}
            for place, judgement in self._judgements(path):
                home, first = split_of.setdefault(judgement.query, (split, place))
                if home != split:
                    message = (
                        f"query {judgement.query!r} is in two splits: {home} ({first}) and {split}; keep it in one"
                    )
                    self.faults.add("queries in two splits", place, message)
                    split_of[judgement.query] = (split, place)  # one fault a query and file, not one a line
                grades = judged.setdefault(judgement.query, {})
                if grades.setdefault(judgement.document, judgement.grade) != judgement.grade:
                    message = (
                        f"query {judgement.query!r}, document {judgement.document!r} has grade {judgement.grade} here "
                        f"and {grades[judgement.document]} before; keep one"
                    )
                    self.faults.add("contradicting judgements", place, message)
            if not any(grade > 0 for grades in judged.values() for grade in grades.values()):
                self.faults.add(
                    "no positive", str(path), f"no judgement above 0, so {split} can teach or measure nothing"
                )
            found[split] = judged
        return found

    def _judgements(self, path: Path) -> Iterator[tuple[str, Judgement]]:
        for number, line in self._lines(path):
            fields = line.rstrip("\n").split("\t")
            place = f"{path}:{number}"
            if not line.strip() or (number == 1 and fields[-1].strip().lower() in ("score", "grade", "relevance")):
                continue
            if len(fields) != 3:
                message = f"expected query id, document id and grade with tabs between, got {line.strip()[:60]!r}"
                self.faults.add("broken qrels lines", place, message)
                continue
            query, document, grade = (part.strip() for part in fields)
            if not (grade.isascii() and grade.isdigit() and len(grade) < 10):
                message = f"the grade is a whole number of 0 or more, got {grade[:60]!r}"
                self.faults.add("broken grades", place, message)
                continue
            if query not in self.query_ids:
                self.faults.add("missing queries", place, f"query {query!r} is not in {self.files.queries}")
            if document not in self.document_ids:
                self.faults.add("missing documents", place, f"document {document!r} is not in {self.files.corpus}")
            if query in self.query_ids and document in self.document_ids:
                yield place, Judgement(query, document, int(grade))

    def _lines(self, path: Path) -> Iterator[tuple[int, str]]:
        """Numbered lines as UTF-8; a byte order mark is passed over."""
        number = 0
        try:
            with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
                for number, raw in enumerate(file, start=1):
                    try:
                        yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
                    except UnicodeDecodeError as error:
                        message = f"not UTF-8 ({error.reason} at byte {error.start} of the line); convert the file"
                        self.faults.add("wrong encoding", f"{path}:{number}", message)
        except (OSError, EOFError, zlib.error) as error:
            message = f"cannot be read to its end: {error}; get or pack the file again"
            self.faults.add("unreadable files", f"{path}:{number + 1}", message)

    def _warnings(self, qrels: Mapping[str, Mapping[str, Mapping[str, int]]]) -> list[str]:
        """What makes numbers doubtful without making them impossible."""
        warnings = []
        home: dict[str, str] = {}
        shared: dict[tuple[str, str], int] = defaultdict(int)
        for split, judged in qrels.items():
            for query in judged:
                first = home.setdefault(self.query_texts[query], split)
                if first != split:
                    shared[first, split] += 1
        for (first, second), count in shared.items():
            warnings.append(
                f"{count} query texts stand in {first} and in {second}: what is learned there is measured here"
            )
        for split in ("dev", "test"):
            count = sum(any(grade > 0 for grade in grades.values()) for grades in qrels[split].values())
            if count < 50:
                warnings.append(f"{count} {split} queries can hardly tell two models apart; 100 or more do")
        return warnings


def build_collection(source: Path, folder: Path) -> Collection:
    """Check `source` and write it as Arrow files under `folder`; raises DataError with every fault."""
    reader = _Reader(find_files(source))
    folder.mkdir(parents=True, exist_ok=True)
    _write(
        folder / "documents.arrow",
        ({"id": document.id, "passage": document.passage} for document in reader.documents()),
        id=str,
        passage=str,
    )
    queries = ({"id": query.id, "text": query.text} for query in reader.queries())
    _write(folder / "queries.arrow", queries, id=str, text=str)
    qrels = reader.qrels()
    reader.faults.stop()
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

    `documents` has the columns id and passage, `queries` id and text; `qrels[split]` is {query row: {document row:
    grade}}, with the queries in the order in which the qrels file names them first.
    """

    documents: Dataset
    queries: Dataset
    qrels: dict[str, dict[int, dict[int, int]]]

    @classmethod
    def open(cls, folder: Path) -> Collection:
        """Map what `build_collection` wrote."""
        from datasets import Dataset

        documents, queries, judgements = (
            Dataset.from_file(str(folder / f"{name}.arrow")) for name in ("documents", "queries", "qrels")
        )
        qrels: dict[str, dict[int, dict[int, int]]] = {split: {} for split in SPLITS}
        columns = (judgements[name][:] for name in ("split", "query", "document", "grade"))
        for split, query, document, grade in zip(*columns, strict=True):
            qrels[split].setdefault(query, {})[document] = grade
        return cls(documents, queries, qrels)

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
