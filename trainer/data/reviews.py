"""Labels that people reviewed: one JSON object a line, laid over the qrels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.data.faults import Faults
from trainer.data.reader import Reader, whole_grade
from trainer.data.records import Qrels
from trainer.data.tables import COLUMNS, FileTable, ending
from trainer.errors import DataError

KEYS = ("query_id", "document_id", "relevant")


def overrule(path: Path, qrels: Qrels, reader: Reader) -> str:
    """Lay the labels over the qrels and return what came of it, for the eye; faults go to the reader's."""
    if not path.is_file() or ending(path) != ".jsonl":
        fault = "no such file" if not path.is_file() else "is no .jsonl file"
        raise DataError(f"{path}: {fault} (data.judgements); lines like {{{', '.join(KEYS)}}} are expected")
    faults, table = reader.faults, FileTable(path)
    home = {query: split for split, judged in qrels.items() for query in judged}
    seen: dict[tuple[str, str], str] = {}
    done: Counter[str] = Counter()
    for number, row in table.rows(lambda columns: _keys(columns, table, faults), faults):
        place = table.place(number)
        query, document = (str(row.get(key)) for key in KEYS[:2])
        relevant = row.get("relevant", "nothing")
        if relevant is not None and not isinstance(relevant, bool) and whole_grade(relevant) is None:
            message = f'"relevant" is true, false, null or a grade of 0 or more, got {relevant!r:.60}'
            faults.add("broken labels", place, message)
        elif _is_known(query, document, home, reader, place):
            if (query, document) in seen:
                message = f"query {query!r}, document {document!r} is labelled in {seen[query, document]} already"
                faults.add("labels given twice", place, f"{message}; keep one")
            seen[query, document] = place
            done[_lay_over(qrels[home[query]][query], document, relevant)] += 1
    return (
        f"{path}: {done['added']} judgements added, {done['overruled']} overruled, {done['confirmed']} confirmed, "
        f"{done['open']} left open"
    )


def _keys(columns: Sequence[str], table: FileTable, faults: Faults) -> Sequence[str] | None:
    missing = [key for key in KEYS if key not in columns]
    if missing:
        message = f"needs the keys {', '.join(KEYS)}; {', '.join(missing)} missing, keys here: {', '.join(columns)}"
        faults.add(COLUMNS, table.name, message)
    return None if missing else KEYS


def _is_known(query: str, document: str, home: Mapping[str, str], reader: Reader, place: str) -> bool:
    if query not in reader.query_ids:
        reader.faults.add("missing queries", place, f"query {query!r} is no query of this collection")
    elif query not in home:
        reader.faults.add("missing queries", place, f"query {query!r} is in no split; judge it in the qrels first")
    if document not in reader.document_ids:
        reader.faults.add("missing documents", place, f"document {document!r} is no document of this collection")
    return query in home and document in reader.document_ids


def _lay_over(grades: dict[str, int], document: str, relevant: Any) -> str:
    """Change one grade; true keeps a grade above 0."""
    if relevant is None:
        return "open"
    before = grades.get(document)
    grade = whole_grade(relevant)
    if grade is None:  # true or false
        grade = max(before or 0, 1) if relevant else 0
    grades[document] = grade
    return "added" if before is None else "confirmed" if before == grade else "overruled"
