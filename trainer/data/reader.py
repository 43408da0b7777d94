"""Reads a collection line by line, handing out good records and noting every fault with file and line."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

from trainer.data.faults import Faults
from trainer.data.records import Judgement, Record
from trainer.data.sources import Files

_SURROGATE = re.compile("[\ud800-\udfff]")


class Reader:
    """Reads the files line by line, handing out good records and noting every fault."""

    def __init__(self, files: Files) -> None:
        self.files = files
        self.faults = Faults()
        self.document_ids: dict[str, int] = {}
        self.query_ids: dict[str, int] = {}

    def documents(self) -> Iterator[Record]:
        """Every good document."""
        return self._records(self.files.corpus, self.document_ids, "document")

    def queries(self) -> Iterator[Record]:
        """Every good query."""
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
