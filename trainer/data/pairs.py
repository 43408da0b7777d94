"""Pairs and triplets of texts to documents, queries and judgements: equal texts are one, and ids come from them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from trainer.data.columns import PAIRS_ROLES, Chosen, chooser
from trainer.data.reader import NO_RECORD, TABLE_SHIFT, Collected, Place, Reader, place_of
from trainer.data.records import Judgement, Qrels, Record
from trainer.data.sources import Sources
from trainer.data.tables import Table
from trainer.recipe import Data

HASH_DIGITS = 12  # of an id; more only where two texts share them


class PairReader(Reader):
    """Reads pairs once, while the documents are asked for; what it learned on the way it hands out afterwards."""

    def __init__(self, sources: Sources, section: Data) -> None:
        super().__init__(sources, section)
        self.tables = [table for tables in sources.pairs.values() for table in tables]
        self._texts: dict[str, str] = {}  # of queries
        self._ids: dict[bytes, str] = {}  # by the whole hash of what the text is
        self._collected = Collected(self.faults)

    def documents(self) -> Iterator[Record]:
        """Every text that is a positive or a negative, once."""
        index = 0
        for split, tables in self.sources.pairs.items():
            self._collected.qrels[split] = {}
            for table in tables:
                yield from self._table(split, table, index << TABLE_SHIFT)
                index += 1

    def queries(self) -> Iterator[Record]:
        """Every query, once."""
        for identity, text in self._texts.items():
            yield Record(identity, "", text)

    def qrels(self) -> Qrels:
        """Positives with grade 1, negatives with grade 0."""
        return self._collected.qrels

    def document_place(self, identity: str) -> str:
        """Where a text stands first."""
        return place_of(self.document_ids[identity], self.tables)

    def query_place(self, identity: str) -> str:
        """Where a query stands first."""
        return place_of(self.query_ids[identity], self.tables)

    def _table(self, split: str, table: Table, offset: int) -> Iterator[Record]:
        chosen: Chosen = {}
        rows = 0
        for number, row in table.rows(chooser(table, self.section, PAIRS_ROLES, chosen, self.faults), self.faults):
            rows += 1
            query_names, positive_names, negative_names = (chosen[role] for role in PAIRS_ROLES)
            query = self._text(row, query_names, "the pair", table, number, needed=True)
            positives = self._listed(row, positive_names, table, number)
            negatives = self._listed(row, negative_names, table, number)
            if query is None or positives is None or negatives is None:
                continue
            if not query.strip() or not positives:
                name = (positive_names if query.strip() else query_names)[0]
                message = f'"{name}" is empty; a pair needs a query and a relevant text'
                self.faults.add("incomplete pairs", table.place(number), message)
                continue
            asked = self._id("q", query, self.query_ids, offset + number)
            self._texts.setdefault(asked, query)
            for text, grade in [*((text, 1) for text in positives), *((text, 0) for text in negatives)]:
                known = len(self.document_ids)
                document = self._id("d", text, self.document_ids, offset + number)
                if len(self.document_ids) > known:
                    yield Record(document, "", text)
                self._judge(split, (table, number), Judgement(asked, document, grade), query, text)
        if not rows and not self.faults.kinds:
            self.faults.add(NO_RECORD, table.name, "holds no readable pair; one a row is expected")

    def _judge(self, split: str, place: Place, judgement: Judgement, query: str, text: str) -> None:
        before = self._collected.qrels[split].get(judgement.query, {}).get(judgement.document, judgement.grade)
        if before == judgement.grade:
            self._collected.add(split, place, judgement, query[:60])
        else:
            table, number = place
            message = f"query {query[:60]!r} has {text[:60]!r} as relevant and as not relevant; keep one"
            self.faults.add("contradicting judgements", table.place(number), message)

    def _listed(self, row: Mapping[str, Any], names: Sequence[str], table: Table, number: int) -> list[str] | None:
        """The texts of all columns, each a text or a list of them; an empty field is none. None after a fault."""
        found: list[str] = []
        for name in names:
            value = row.get(name)
            for text in value if isinstance(value, list) else [value]:
                if text is None:
                    continue
                sound = self._text({name: text}, [name], "the pair", table, number)
                if sound is None:
                    return None
                found += [sound] if sound.strip() else []
        return found

    def _id(self, letter: str, text: str, seen: dict[str, int], place: int) -> str:
        """The id of a text, made from its hash; white space makes no difference."""
        digest = hashlib.sha256(f"{letter} {' '.join(text.split())}".encode())
        known = self._ids.get(digest.digest())
        if known is not None:
            return known
        digits = HASH_DIGITS
        while (identity := f"{letter}-{digest.hexdigest()[:digits]}") in seen:
            digits += 4
        self._ids[digest.digest()] = identity
        seen[identity] = place
        return identity
