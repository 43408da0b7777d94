"""Pairs and triplets of texts to documents, queries and judgements; equal texts are merged and get ids by hash."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from trainer.data.columns import PAIRS_ROLES, Chosen, chooser
from trainer.data.reader import GRADE, NO_RECORD, TABLE_SHIFT, Position, Reader, location_of, parse_grade
from trainer.data.records import Judgement, Record, SplitQrels
from trainer.data.sources import Sources
from trainer.data.tables import Table
from trainer.data.values import NoTextError, texts_of
from trainer.recipe import Data

HASH_DIGITS = 12  # of an id; more only if two texts share them


class Pair(NamedTuple):
    """One row: a query and its texts with their grades."""

    query: str
    graded: list[tuple[str, int]]


class PairReader(Reader):
    """Reads the files of pairs once, in `documents`, and collects the queries and judgements that follow from them."""

    def __init__(self, sources: Sources, section: Data) -> None:
        super().__init__(sources, section)
        self.tables = [table for tables in sources.pairs.values() for table in tables]
        self._texts: dict[str, str] = {}  # of queries
        self._ids: dict[bytes, str] = {}  # by the full hash of query or document and text

    def documents(self) -> Iterator[Record]:
        """Yield every positive and negative text once."""
        index = 0
        for split, tables in self.sources.pairs.items():
            self.collected.qrels[split] = {}
            for table in tables:
                yield from self._table(split, table, index << TABLE_SHIFT)
                index += 1

    def queries(self) -> Iterator[Record]:
        """Yield every query once; call it after `documents`."""
        for identity, text in self._texts.items():
            yield Record(identity, "", text)

    def qrels(self) -> SplitQrels:
        """Return the judgements: positives with grade 1 or their label, negatives with grade 0."""
        return self.collected.qrels

    def document_location(self, identity: str) -> str:
        """Return the location of a text's first occurrence, e.g. file:line."""
        return location_of(self.document_ids[identity], self.tables)

    def query_location(self, identity: str) -> str:
        """Return the location of a query's first occurrence, e.g. file:line."""
        return location_of(self.query_ids[identity], self.tables)

    def _table(self, split: str, table: Table, offset: int) -> Iterator[Record]:
        chosen: Chosen = {}
        rows = 0
        for number, row in table.rows(chooser(table, self.section, PAIRS_ROLES, chosen, self.faults), self.faults):
            rows += 1
            pair = self._pair(row, chosen, (table, number))
            if pair is None:
                continue
            query = self._id("q", pair.query, self.query_ids, offset + number)
            self._texts.setdefault(query, pair.query)
            for text, grade in pair.graded:
                known = len(self.document_ids)
                document = self._id("d", text, self.document_ids, offset + number)
                if len(self.document_ids) > known:
                    yield Record(document, "", text)
                self._judge(split, (table, number), Judgement(query, document, grade), pair.query, text)
        if not rows and not self.faults.kinds:
            self.faults.add(NO_RECORD, table.name, "holds no readable pair; one per row is expected")

    def _pair(self, row: Mapping[str, Any], chosen: Chosen, position: Position) -> Pair | None:
        """Return the query and the graded texts of one row, None after a problem."""
        table, number = position
        (query_name,), (positive_name,) = chosen["pairs_query"], chosen["pairs_positive"]
        queries, positives = (self._listed(row, name, position, needed=True) for name in (query_name, positive_name))
        negatives = [self._listed(row, name, position) for name in chosen["pairs_negatives"]]
        if queries is None or positives is None or None in negatives:
            return None
        grades = self._grades(row, chosen, len(positives), position)
        if grades is None:
            return None
        graded = [(text, grade) for text, grade in zip(positives, grades, strict=True) if text.strip()]
        if not "".join(queries).strip() or not graded:
            name = positive_name if "".join(queries).strip() else query_name
            message = f'"{name}" is empty; a pair needs a query and a relevant text'
            self.faults.add("incomplete pairs", table.location(number), message)
            return None
        if len(queries) > 1:
            message = f'"{query_name}" holds {len(queries)} texts; a pair has one query'
            self.faults.add("incomplete pairs", table.location(number), message)
            return None
        graded += [(text, 0) for texts in negatives if texts for text in texts if text.strip()]
        return Pair(queries[0], graded)

    def _grades(self, row: Mapping[str, Any], chosen: Chosen, count: int, position: Position) -> list[int] | None:
        """Return the grade of each text in the positive column, 1 without a label; None after a problem."""
        table, number = position
        labels = [row.get(name) for name in chosen["pairs_label"]]
        if not labels or labels == [None]:
            return [1] * count
        given = labels[0] if isinstance(labels[0], list) else labels
        grades = [parse_grade(value.strip() if isinstance(value, str) else value) for value in given]
        if None in grades:
            message = f"{GRADE}, got {labels[0]!r:.60}; name another column with data.pairs_label"
            self.faults.add("broken grades", table.location(number), message)
            return None
        if len(grades) != count:
            name = chosen["pairs_label"][0]
            message = f'"{name}" holds {len(grades)} grades for {count} texts; one per text is expected'
            self.faults.add("broken grades", table.location(number), message)
            return None
        return [grade for grade in grades if grade is not None]

    def _judge(self, split: str, position: Position, judgement: Judgement, query: str, text: str) -> None:
        before = self.collected.qrels[split].get(judgement.query, {}).get(judgement.document, judgement.grade)
        if before == judgement.grade or self.section.repeated != "error":
            self.collected.add(split, position, judgement, query[:60])
        else:
            table, number = position
            message = f"query {query[:60]!r} has {text[:60]!r} both as relevant and as not relevant; keep one"
            if before and judgement.grade:
                message = (
                    f"query {query[:60]!r} has {text[:60]!r} with the grades {before} and {judgement.grade}; keep one"
                )
            self.faults.add("contradicting judgements", table.location(number), message)

    def _listed(self, row: Mapping[str, Any], name: str, position: Position, needed: bool = False) -> list[str] | None:
        """Return the texts of a column, empty ones included; None after a problem."""
        table, number = position
        try:
            if needed and row.get(name) is None:
                raise NoTextError(f"got {row.get(name)!r}")
            texts = texts_of(row.get(name))
        except NoTextError as error:
            message = f'the pair needs "{name}" as a text or a list of texts, {error}; keys here: {", ".join(row)}'
            self.faults.add("missing texts", table.location(number), message)
            return None
        return texts if all(self._is_sound(text, "the pair", table, number) for text in texts) else None

    def _id(self, letter: str, text: str, seen: dict[str, int], position: int) -> str:
        """Return the id of a text, made from its hash; differences in white space are ignored."""
        digest = hashlib.sha256(f"{letter} {' '.join(text.split())}".encode())
        known = self._ids.get(digest.digest())
        if known is not None:
            return known
        digits = HASH_DIGITS
        while (identity := f"{letter}-{digest.hexdigest()[:digits]}") in seen:
            digits += 4
        self._ids[digest.digest()] = identity
        seen[identity] = position
        return identity
