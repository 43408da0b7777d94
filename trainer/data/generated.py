"""Queries made from documents, as the stage `generate` writes them, and the collection with these queries."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from trainer.data.collection import Collection
from trainer.data.records import SPLITS
from trainer.runtime.run_folder import replacing

FILE, CUT = "queries.jsonl", "cut.jsonl"
PREFIX = "made-"  # of the ids; a number is added until no real query has the id


class MadeQuery(NamedTuple):
    """A query made from a document row; `kind` is what was asked for, `also` other document rows that answer it."""

    text: str
    kind: str
    document: int
    split: str
    also: tuple[int, ...] = ()


def write_queries(
    queries: Iterable[MadeQuery], collection: Collection, folder: Path, cut: Mapping[int, str] | None = None
) -> None:
    """Write one JSON line per query, with the ids of its document and of others that answer it.

    `cut` are the texts of documents without the queries that were taken from them, by row.
    """
    _write_cut(cut or {}, collection, folder)
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


def _write_cut(cut: Mapping[int, str], collection: Collection, folder: Path) -> None:
    if not cut:
        return
    with replacing(folder / CUT) as partial, partial.open("w", encoding="utf-8") as file:
        for row, passage in cut.items():
            line = {"document_id": collection.document_ids[row], "passage": passage}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def with_made_queries(collection: Collection, folder: Path) -> Collection:
    """Return the collection with the queries that `write_queries` wrote, each with the documents that answer it."""
    lines, cut = _lines(folder / FILE), _lines(folder / CUT)
    rows = {identity: row for row, identity in enumerate(collection.document_ids)}
    first, grade = len(collection.queries), collection.relevant_from
    extended = collection.with_queries({line["_id"]: line["text"] for line in lines})
    qrels = {split: dict(collection.qrels[split]) for split in SPLITS}
    for row, line in enumerate(lines, start=first):
        qrels[line["split"]][row] = {rows[identity]: grade for identity in (line["document_id"], *line["also"])}
    passages = {rows[line["document_id"]]: line["passage"] for line in cut}
    return replace(extended, qrels=qrels, made=frozenset(range(first, first + len(lines))), cut=passages)


def _lines(path: Path) -> list[dict[str, Any]]:
    """Return the JSON lines of a file, none if there is no file."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]
