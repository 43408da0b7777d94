"""Reviewed labels that override the qrels: one JSON object per line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.data.faults import Faults
from trainer.data.reader import Reader, parse_grade
from trainer.data.records import SplitQrels
from trainer.data.tables import COLUMNS, FileTable, ending
from trainer.errors import DataError

KEYS = ("query_id", "document_id", "relevant")


def overrule(path: Path, qrels: SplitQrels, reader: Reader) -> str:
    """Apply the reviewed labels to the qrels and return a message with the counts.

    Problems are added to those of the reader. Raises DataError if there is no such file.
    """
    if not path.is_file() or ending(path) != ".jsonl":
        problem = "no such file" if not path.is_file() else "is not a .jsonl file"
        raise DataError(f"{path}: {problem} (data.judgements); lines like {{{', '.join(KEYS)}}} are expected")
    faults, table = reader.faults, FileTable(path)
    split_of = {query: split for split, judged in qrels.items() for query in judged}
    seen: dict[tuple[str, str], str] = {}
    changes: Counter[str] = Counter()
    changed_labels: Counter[str] = Counter()  # by split
    for number, row in table.rows(lambda columns: _keys(columns, table, faults), faults):
        location = table.location(number)
        query, document = (str(row.get(key)) for key in KEYS[:2])
        relevant = row.get("relevant", "nothing")
        if relevant is not None and not isinstance(relevant, bool) and parse_grade(relevant) is None:
            message = f'"relevant" is true, false, null or a grade, got {relevant!r:.60}'
            faults.add("broken labels", location, message)
        elif _is_known(query, document, split_of, reader, location):
            if (query, document) in seen:
                message = f"query {query!r}, document {document!r} is labelled in {seen[query, document]} already"
                faults.add("labels given twice", location, f"{message}; keep one")
            seen[query, document] = location
            change = _apply_label(qrels[split_of[query]][query], document, relevant, reader.section.relevant_from)
            changes[change] += 1
            changed_labels[split_of[query]] += change in ("added", "overruled")
    message = (
        f"{path}: {changes['added']} judgements added, {changes['overruled']} overruled, "
        f"{changes['confirmed']} confirmed, {changes['open']} left open"
    )
    evaluated = [
        f"{changed_labels[split]} are of {split} queries" for split in ("dev", "test") if changed_labels[split]
    ]
    return f"{message}; {' and '.join(evaluated)}, so metrics change" if evaluated else message


def _keys(columns: Sequence[str], table: FileTable, faults: Faults) -> Sequence[str] | None:
    missing = [key for key in KEYS if key not in columns]
    if missing:
        message = f"needs the keys {', '.join(KEYS)}; {', '.join(missing)} missing, keys here: {', '.join(columns)}"
        faults.add(COLUMNS, table.name, message)
    return None if missing else KEYS


def _is_known(query: str, document: str, split_of: Mapping[str, str], reader: Reader, location: str) -> bool:
    if query not in reader.query_ids:
        message = f"query {query!r} is not a query of this collection{reader.near('query', query)}"
        reader.faults.add("missing queries", location, message)
    elif query not in split_of:
        reader.faults.add("missing queries", location, f"query {query!r} is in no split; add it to the qrels first")
    if document not in reader.document_ids:
        message = f"document {document!r} is not a document of this collection{reader.near('document', document)}"
        reader.faults.add("missing documents", location, message)
    return query in split_of and document in reader.document_ids


def _apply_label(grades: dict[str, int], document: str, relevant: Any, relevant_from: int) -> str:
    """Apply a label and return the kind of change; true leaves a relevant grade unchanged, false an irrelevant one."""
    if relevant is None:
        return "open"
    before = grades.get(document)
    if isinstance(relevant, bool):
        grade = max(before or 0, relevant_from) if relevant else min(before or 0, relevant_from - 1)
    else:
        grade = parse_grade(relevant) or 0
    grades[document] = grade
    return "added" if before is None else "confirmed" if before == grade else "overruled"
