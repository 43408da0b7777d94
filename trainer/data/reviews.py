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
    measured: Counter[str] = Counter()
    for number, row in table.rows(lambda columns: _keys(columns, table, faults), faults):
        place = table.place(number)
        query, document = (str(row.get(key)) for key in KEYS[:2])
        relevant = row.get("relevant", "nothing")
        if relevant is not None and not isinstance(relevant, bool) and whole_grade(relevant) is None:
            message = f'"relevant" is true, false, null or a grade, got {relevant!r:.60}'
            faults.add("broken labels", place, message)
        elif _is_known(query, document, home, reader, place):
            if (query, document) in seen:
                message = f"query {query!r}, document {document!r} is labelled in {seen[query, document]} already"
                faults.add("labels given twice", place, f"{message}; keep one")
            seen[query, document] = place
            change = _lay_over(qrels[home[query]][query], document, relevant, reader.section.relevant_from)
            done[change] += 1
            measured[home[query]] += change in ("added", "overruled")
    said = (
        f"{path}: {done['added']} judgements added, {done['overruled']} overruled, {done['confirmed']} confirmed, "
        f"{done['open']} left open"
    )
    changed = [f"{measured[split]} are of {split} queries" for split in ("dev", "test") if measured[split]]
    return f"{said}; {' and '.join(changed)}, so they change what is measured" if changed else said


def _keys(columns: Sequence[str], table: FileTable, faults: Faults) -> Sequence[str] | None:
    missing = [key for key in KEYS if key not in columns]
    if missing:
        message = f"needs the keys {', '.join(KEYS)}; {', '.join(missing)} missing, keys here: {', '.join(columns)}"
        faults.add(COLUMNS, table.name, message)
    return None if missing else KEYS


def _is_known(query: str, document: str, home: Mapping[str, str], reader: Reader, place: str) -> bool:
    if query not in reader.query_ids:
        message = f"query {query!r} is no query of this collection{reader.near('query', query)}"
        reader.faults.add("missing queries", place, message)
    elif query not in home:
        reader.faults.add("missing queries", place, f"query {query!r} is in no split; judge it in the qrels first")
    if document not in reader.document_ids:
        message = f"document {document!r} is no document of this collection{reader.near('document', document)}"
        reader.faults.add("missing documents", place, message)
    return query in home and document in reader.document_ids


def _lay_over(grades: dict[str, int], document: str, relevant: Any, relevant_from: int) -> str:
    """Change one grade; true keeps a grade that counts as relevant, false one that does not."""
    if relevant is None:
        return "open"
    before = grades.get(document)
    if isinstance(relevant, bool):
        grade = max(before or 0, relevant_from) if relevant else min(before or 0, relevant_from - 1)
    else:
        grade = whole_grade(relevant) or 0
    grades[document] = grade
    return "added" if before is None else "confirmed" if before == grade else "overruled"
