"""Reading click logs: rows to counts, with all problems by file and line, and their labels for the train queries."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from trainer.data.clicks import ClickLog, Shown, labels
from trainer.data.columns import CLICKS_ROLES, Chosen, chooser, shown
from trainer.data.faults import Faults
from trainer.data.lines import ENCODING, UNREADABLE
from trainer.data.reader import NO_RECORD, Reader
from trainer.data.records import Judgement, SplitQrels
from trainer.data.tables import COLUMNS, Table

BROKEN = "broken clicks"


def add_labels(reader: Reader, qrels: SplitQrels, texts: Mapping[str, str]) -> None:
    """Add the labels of the click log to the train judgements, and what was done to the reader, as `clicked`.

    Judgements of people replace these labels, and queries of dev and test files get none, nor others with their text.
    `texts` are the normalised ones of all queries.
    """
    section, log = reader.section, ClickLog()
    for row, impressions, clicks in _rows(reader):
        log.add(row, impressions, clicks)
    if not log.counts:
        return
    clicked = labels(log, section.clicks_propensity, section.clicks_evidence)
    held_out = {texts[query] for split in ("dev", "test") for query in qrels.get(split, ())}
    left_out = [query for query in clicked.grades if texts[query] in held_out]
    train = qrels.setdefault("train", {})
    for query, grades in clicked.grades.items():
        if texts[query] not in held_out:
            train[query] = grades | train.get(query, {})
    note = clicked.note
    if left_out:
        note += f"; {len(left_out)} queries are also judged in dev or test, so their clicks are not used"
    reader.clicked = {"note": note, "queries_of_dev_and_test": len(left_out), **clicked.record}


def _rows(reader: Reader) -> Iterator[tuple[Shown, int, int]]:
    """Yield query, document and position with impressions and clicks of every valid row."""
    complete = not reader.faults.any_of(COLUMNS, UNREADABLE, ENCODING, NO_RECORD)
    for table in reader.sources.clicks:
        chosen: Chosen = {}
        empty = True
        for number, row in table.rows(_chooser(table, reader, chosen), reader.faults):
            empty = False
            row = {name: value.strip() if isinstance(value, str) else value for name, value in row.items()}
            counts = _counts(row, chosen, table, number, reader)
            query, document = (
                reader.identity(row, chosen[role][0], table, number) for role in ("clicks_query", "clicks_document")
            )
            if query is None or document is None or counts is None:
                continue
            if reader.is_known(Judgement(query, document, 0), table, number, complete):
                position, impressions, clicks = counts
                yield Shown(query, document, position), impressions, clicks
        if empty and not reader.faults.any_of(COLUMNS, UNREADABLE, ENCODING):
            reader.faults.add(NO_RECORD, table.name, "holds no clicks; one query and document per row is expected")


def _chooser(table: Table, reader: Reader, chosen: Chosen) -> Any:
    choose = chooser(table, reader.section, CLICKS_ROLES, chosen, reader.faults)

    def choose_and_check(columns: Any) -> Any:
        wanted = choose(columns)
        if wanted is not None and not chosen["clicks_impressions"] and not chosen["clicks_position"]:
            message = (
                f"has neither impressions nor positions; columns here: {shown(columns)}; name one with "
                "data.clicks_impressions or data.clicks_position"
            )
            reader.faults.add(COLUMNS, table.name, message)
            return None
        return wanted

    return choose_and_check


def _counts(
    row: Mapping[str, Any], chosen: Chosen, table: Table, number: int, reader: Reader
) -> tuple[int, int, int] | None:
    """Return position (0 if unknown), impressions and clicks of a row, None after a problem."""
    before = len(reader.faults.kinds.get(BROKEN, ()))
    faults, place = reader.faults, table.location(number)
    clicks = _number(row, chosen["clicks_count"], "clicks", 0, place, faults)
    impressions, position = 1, 0
    if chosen["clicks_impressions"]:
        impressions = _number(row, chosen["clicks_impressions"], "impressions", 1, place, faults)
    if chosen["clicks_position"]:
        position = _number(row, chosen["clicks_position"], "a position", 1, place, faults)
    if len(faults.kinds.get(BROKEN, ())) > before:
        return None
    if clicks > impressions:
        shown = "the row is one impression" if not chosen["clicks_impressions"] else f"only {impressions} impressions"
        faults.add(BROKEN, place, f"{clicks} clicks, but {shown}; count at most one click for each impression")
        return None
    given = reader.section.clicks_propensity
    if isinstance(given, tuple) and position > len(given):
        faults.add(BROKEN, place, f"position {position}, but data.clicks_propensity has {len(given)} numbers; add more")
        return None
    return position, impressions, clicks


def _number(row: Mapping[str, Any], names: tuple[str, ...], what: str, least: int, place: str, faults: Faults) -> int:
    """Return a whole number of at least `least`; another value is a problem."""
    value = row.get(names[0])
    try:
        number = float(value) if not isinstance(value, bool) else int(value)  # type: ignore[arg-type] None fails too
        if number == int(number) and least <= number < 2**53:
            return int(number)
    except (TypeError, ValueError, OverflowError):
        pass
    faults.add(BROKEN, place, f'needs "{names[0]}" as {what}, a whole number from {least} on, got {value!r:.60}')
    return least
