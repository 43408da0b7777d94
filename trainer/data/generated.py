"""Queries made from documents, as the stage `generate` writes them, and the collection with these queries."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from trainer.data.collection import Collection
from trainer.data.records import SPLITS
from trainer.runtime.run_folder import replacing

FILE = "queries.jsonl"
PREFIX = "made-"  # of the ids; a number is added until no real query has the id


class MadeQuery(NamedTuple):
    """A query made from a document row; `kind` is what was asked for, `also` other document rows that answer it."""

    text: str
    kind: str
    document: int
    split: str
    also: tuple[int, ...] = ()


def write_queries(queries: Iterable[MadeQuery], collection: Collection, folder: Path) -> None:
    """Write one JSON line per query, with the ids of its document and of others that answer it."""
    taken, number = set(collection.query_ids), 0
    with replacing(folder / FILE) as partial, partial.open("w", encoding="utf-8") as file:
        for query in queries:
            number += 1
            while f"{PREFIX}{number}" in taken:
                number += 1
            line = {
                "_id": f"{PREFIX}{number}",
                "text": query.text,
                "kind": query.kind,
                "document_id": collection.document_ids[query.document],
                "split": query.split,
                "also": [collection.document_ids[row] for row in query.also],
            }
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def with_made_queries(collection: Collection, folder: Path) -> Collection:
    """Return the collection with the queries that `write_queries` wrote, each with the documents that answer it."""
    with (folder / FILE).open(encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    rows = {identity: row for row, identity in enumerate(collection.document_ids)}
    first, grade = len(collection.queries), collection.relevant_from
    extended = collection.with_queries({line["_id"]: line["text"] for line in lines})
    qrels = {split: dict(collection.qrels[split]) for split in SPLITS}
    for row, line in enumerate(lines, start=first):
        qrels[line["split"]][row] = {rows[identity]: grade for identity in (line["document_id"], *line["also"])}
    return replace(extended, qrels=qrels, made=frozenset(range(first, first + len(lines))))
