"""Rows to documents, queries and judgements with ids; invalid rows are collected as problems with file and line."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from trainer.data.columns import CORPUS_ROLES, QRELS_ROLES, QUERIES_ROLES, Chosen, chooser
from trainer.data.faults import Faults
from trainer.data.lines import ENCODING, UNREADABLE
from trainer.data.records import Judgement, Record, SplitQrels, trec_id
from trainer.data.sources import Sources
from trainer.data.tables import COLUMNS, Table
from trainer.recipe import Data

_SURROGATE = re.compile("[\ud800-\udfff]")
_WHOLE = re.compile(r"-?[0-9]{1,9}(\.0{1,9})?")
_TRUTH = {"true": 1, "false": 0}
GRADE = "the grade is a whole number (below 1: not relevant)"
NO_RECORD = "no record"
TABLE_SHIFT = 40  # a packed position is one int per id: the table's number, shifted by these bits, and the row's number


class Reader:
    """Reads corpus, queries and qrels, in this order; the ids map to packed positions, in the order of the rows."""

    def __init__(self, sources: Sources, section: Data) -> None:
        self.sources = sources
        self.section = section
        self.faults = Faults()
        self.document_ids: dict[str, int] = {}
        self.query_ids: dict[str, int] = {}
        self.collected = JudgementCollector(self.faults, section)
        self.skipped: dict[str, set[str]] = {"document": set(), "query": set()}  # unknown ids
        self.skipped_judgements = 0
        self.clicked: dict[str, Any] | None = None  # what became of the click log

    def documents(self) -> Iterator[Record]:
        """Yield every valid document."""
        return self._records(self.sources.corpus, CORPUS_ROLES, self.document_ids, "document")

    def queries(self) -> Iterator[Record]:
        """Yield every valid query."""
        return self._records(self.sources.queries, QUERIES_ROLES, self.query_ids, "query")

    def document_location(self, identity: str) -> str:
        """Return the location of a document, e.g. file:line."""
        return location_of(self.document_ids[identity], self.sources.corpus)

    def query_location(self, identity: str) -> str:
        """Return the location of a query, e.g. file:line."""
        return location_of(self.query_ids[identity], self.sources.queries)

    def _records(
        self, tables: Sequence[Table], roles: Sequence[str], seen: dict[str, int], what: str
    ) -> Iterator[Record]:
        spaced: list[str] = []
        for index, table in enumerate(tables):
            chosen: Chosen = {}
            before = len(seen), sum(map(len, self.faults.kinds.values()))
            for number, row in table.rows(chooser(table, self.section, roles, chosen, self.faults), self.faults):
                record = self._record(row, chosen, table, number, what)
                if record is None:
                    continue
                if record.id in seen:
                    self._report_duplicate(record.id, seen, tables, (index, number), what)
                    continue
                seen[record.id] = (index << TABLE_SHIFT) + number
                if trec_id(record.id) != record.id:
                    spaced.append(record.id)
                yield record
            if before == (len(seen), sum(map(len, self.faults.kinds.values()))):
                message = f"holds no readable {what}; one per row is expected"
                self.faults.add(NO_RECORD, table.name, message)
        for identity in spaced:
            if trec_id(identity) in seen:
                message = (
                    f"{what} id {identity!r} is {trec_id(identity)!r} in run files, which is another id; rename one"
                )
                self.faults.add("ids with white space", location_of(seen[identity], tables), message)

    def _report_duplicate(
        self, identity: str, seen: Mapping[str, int], tables: Sequence[Table], position: tuple[int, int], what: str
    ) -> None:
        index, number = position
        first, line = divmod(seen[identity], 1 << TABLE_SHIFT)
        where = f"on line {line}" if first == index else f"in {location_of(seen[identity], tables)}"
        message = f"{what} id {identity!r} is {where} already; ids must be unique"
        self.faults.add(f"duplicate {what} ids", tables[index].location(number), message)

    def _record(self, row: Mapping[str, Any], chosen: Chosen, table: Table, number: int, what: str) -> Record | None:
        document = what == "document"
        name = chosen["corpus_id" if document else "query_id"][0]
        identity = self.identity(row, name, table, number)
        if identity is None:
            return None
        title = self._text(row, chosen["corpus_title"], f"{what} {identity!r}", table, number) if document else ""
        texts = chosen["corpus_text" if document else "query_text"]
        text = self._text(row, texts, f"{what} {identity!r}", table, number, needed=True)
        if title is None or text is None:
            return None
        record = Record(identity, title, text)
        if not record.passage:
            message = f"{what} {identity!r} is empty; give it a text, or remove it and its judgements"
            self.faults.add(f"empty {what} texts", table.location(number), message)
        return record

    def identity(self, row: Mapping[str, Any], name: str, table: Table, number: int) -> str | None:
        """Return the id in a column of a row, None after a problem."""
        value = row.get(name)
        if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
            message = f'needs "{name}" as a text or whole number, got {value!r}; keys here: {", ".join(row)}'
            self.faults.add("missing ids", table.location(number), message)
            return None
        identity = str(value).strip()
        return identity if self._is_sound(identity, name, table, number) else None

    def _text(
        self, row: Mapping[str, Any], names: Sequence[str], what: str, table: Table, number: int, needed: bool = False
    ) -> str | None:
        """Return the text of one column, or of several joined by a space; None after a problem."""
        values = [row.get(name) for name in names]
        texts = [value for value in values if value is not None]
        wrong = next((at for at, value in enumerate(values) if not isinstance(value, str | None)), None)
        if wrong is None and needed and not texts:
            wrong = 0
        if wrong is not None:
            nested = "; it is nested, write the text into a column of its own" * isinstance(values[wrong], list | dict)
            given = f"got {values[wrong]!r:.60}; keys here: {', '.join(row)}{nested}"
            message = f'{what} needs "{names[wrong]}" as a text, {given}'
            self.faults.add("missing texts", table.location(number), message)
            return None
        text = texts[0] if len(texts) == 1 else " ".join(filter(None, texts))
        return text if self._is_sound(text, what, table, number) else None

    def _is_sound(self, text: str, what: str, table: Table, number: int) -> bool:
        if "\0" in text:
            problem = "a NUL character"
        elif not text.isascii() and _SURROGATE.search(text):
            problem = "half a character (a lone surrogate, \\ud800 to \\udfff)"
        else:
            return True
        self.faults.add("broken characters", table.location(number), f"{what} holds {problem}; remove it")
        return False

    def qrels(self) -> SplitQrels:
        """Return the judgements of the splits that have files; call it after `documents` and `queries`."""
        # An unreadable file is reported once, not again for each of its ids.
        complete = not self.faults.any_of(COLUMNS, UNREADABLE, ENCODING, NO_RECORD)
        for split, tables in self.sources.qrels.items():
            self.collected.qrels[split] = {}
            for table in tables:
                for number, judgement in self._judgements(table):
                    if self.is_known(judgement, table, number, complete):
                        self.collected.add(split, (table, number), judgement)
        return self.collected.qrels

    def notes(self) -> list[str]:
        """Return notes on judgements that were left out or merged."""
        notes = []
        if self.skipped_judgements:
            counts = [f"{len(ids)} unknown {what} ids" for what, ids in self.skipped.items() if ids]
            examples = [next(iter(sorted(ids))) for ids in self.skipped.values() if ids]
            notes.append(
                f"{self.skipped_judgements} judgements were left out, with {' and '.join(counts)}, "
                f"e.g. {' and '.join(examples)} (data.unknown_ids)"
            )
        if self.collected.repeats:
            how = {"sum": "their grades were added", "max": "the highest grade counts"}[self.section.repeated]
            notes.append(f"{self.collected.repeats} judgements repeat a pair; {how} (data.repeated)")
        return notes if self.clicked is None else [*notes, self.clicked["note"]]

    def _judgements(self, table: Table) -> Iterator[tuple[int, Judgement]]:
        chosen: Chosen = {}
        for number, row in table.rows(chooser(table, self.section, QRELS_ROLES, chosen, self.faults), self.faults):
            (query_name,), (document_name,), (grade_name,) = (chosen[role] for role in QRELS_ROLES)
            row = {name: value.strip() if isinstance(value, str) else value for name, value in row.items()}
            query = self.identity(row, query_name, table, number)
            document = self.identity(row, document_name, table, number)
            grade = parse_grade(row.get(grade_name))
            if grade is None:
                message = f"{GRADE}, got {row.get(grade_name)!r:.60}"
                self.faults.add("broken grades", table.location(number), message)
            elif query is not None and document is not None:
                yield number, Judgement(query, document, grade)

    def is_known(self, judgement: Judgement, table: Table, number: int, complete: bool) -> bool:
        """Return whether query and document of a judgement exist; problems are only added if all ids were read."""
        known = True
        for what, identity, seen, tables in (
            ("query", judgement.query, self.query_ids, self.sources.queries),
            ("document", judgement.document, self.document_ids, self.sources.corpus),
        ):
            if identity in seen:
                continue
            known = False
            if self.section.unknown_ids == "skip":
                self.skipped[what].add(identity)
            elif complete:
                kind = "missing queries" if what == "query" else "missing documents"
                remedy = self.near(what, identity) or "; correct the id, or set data.unknown_ids: skip"
                message = f"{what} {identity!r} is not in {names_of(tables)}{remedy}"
                self.faults.add(kind, table.location(number), message)
        self.skipped_judgements += not known
        return known

    def near(self, what: str, identity: str) -> str:
        """Return a hint if an id differs from a known one only in its form, else an empty string."""
        seen = self.query_ids if what == "query" else self.document_ids
        whole = identity.removesuffix(".0")
        if whole != identity and whole in seen:
            return f", but {whole!r} is: write ids as whole numbers"
        near = self._by_form[what].get(_form(identity))
        if near is None:
            return ""
        if unicodedata.normalize("NFC", near) == unicodedata.normalize("NFC", identity):
            return (
                f", but the same characters in another Unicode form are ({ascii(near)} there, {ascii(identity)} here): "
                "write all files in one form, e.g. with uconv -x nfc"
            )
        return f", but {near!r} is: spell the ids in the same way"

    @cached_property
    def _by_form(self) -> dict[str, dict[str, str]]:
        """Known ids by their normalised form; computed at the first unknown id."""
        seen = {"query": self.query_ids, "document": self.document_ids}
        return {what: {_form(identity): identity for identity in ids} for what, ids in seen.items()}


def _form(identity: str) -> str:
    """Return an id in a normalised form, without differences of Unicode form, case, leading zeros and white space."""
    plain = unicodedata.normalize("NFC", identity).casefold()
    return "".join(plain.split()).lstrip("0") or "0"


Position = tuple[Table, int]  # a table and the number of a row in it


class JudgementCollector:
    """Collects judgements by split, with each query in one split and each document with one grade."""

    def __init__(self, faults: Faults, section: Data) -> None:
        self.faults = faults
        self.repeated = section.repeated
        self.qrels: SplitQrels = {}
        self.repeats = 0
        self._first: dict[str, tuple[str, Position]] = {}  # split and position of a query's first judgement

    def add(self, split: str, position: Position, judgement: Judgement, name: str = "") -> None:
        """Add one judgement; `name` is the query's name for the user, if that is not its id."""
        query, document, grade = judgement
        first_split, (table, number) = self._first.setdefault(query, (split, position))
        if first_split != split:
            first = table.location(number)
            message = f"query {name or query!r} is in two splits: {first_split} ({first}) and {split}; keep it in one"
            self._add_problem("queries in two splits", position, message)
            self._first[query] = (split, position)  # one problem per query and file, not per line
        grades = self.qrels[split].setdefault(query, {})
        if document not in grades:
            grades[document] = grade
            return
        before = grades[document]
        if self.repeated != "error":
            self.repeats += 1
            grades[document] = before + grade if self.repeated == "sum" else max(before, grade)
        elif before != grade:
            message = (
                f"query {query!r}, document {document!r} has grade {grade} here and {before} before; keep one, or set "
                "data.repeated: sum or max"
            )
            self._add_problem("contradicting judgements", position, message)

    def _add_problem(self, kind: str, position: Position, message: str) -> None:
        table, number = position
        self.faults.add(kind, table.location(number), message)


def parse_grade(value: object) -> int | None:
    """Return a grade as a number of 0 or more, None if the value is not a grade.

    It may be written as 1, 1.0, true, or as text. Negative grades, which TREC uses for spam and unjudged documents,
    count as not relevant.
    """
    if isinstance(value, str):
        truth = _TRUTH.get(value.lower())
        return truth if truth is not None else max(0, int(float(value))) if _WHOLE.fullmatch(value) else None
    if isinstance(value, int | float) and -(10**9) < value < 10**9 and value == int(value):
        return max(0, int(value))
    return None


def location_of(position: int, tables: Sequence[Table]) -> str:
    """Return the location of a packed position, e.g. file:line."""
    index, number = divmod(position, 1 << TABLE_SHIFT)
    return tables[index].location(number)


def names_of(tables: Sequence[Table]) -> str:
    """Return the names of files for a message."""
    more = f" (and {len(tables) - 1} more)" if len(tables) > 1 else ""
    return f"{tables[0].name}{more}"
