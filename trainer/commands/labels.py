"""Likely false negatives to a spreadsheet or Label Studio, and the labels back to the answers of the review."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.commands.label_files import FORMATS, Label, Pair, key_of, labels, pair_of, read, require_format, write
from trainer.commands.review import answers_in, locked, pairs_in, require_mined
from trainer.data import Collection, Faults
from trainer.errors import RunError
from trainer.runtime import console
from trainer.runtime.run_folder import replacing

NAMES = {True: "relevant", False: "not relevant"}


def write_pairs(pairs_file: Path, judgements: Path, path: Path) -> None:
    """Write the pairs without an answer in `judgements` to a file that another tool opens.

    Raises RunError if there is no list of pairs, or if the file exists, because it may hold labels.
    """
    require_mined(pairs_file)
    require_format(path)
    if path.exists():
        raise RunError(f"{path}: exists already, and may hold labels; delete it, or name another file")
    before = answers_in(judgements)
    answered = set(map(pair_of, before))
    lines = [line for line in pairs_in(pairs_file) if pair_of(line) not in answered]
    write(lines, path)
    console.stage("review", f"{len(lines)} open pairs in {path}; fill in `relevant`, then: --from {path}")


def read_labels(path: Path, pairs_file: Path, judgements: Path) -> int:
    """Add the labels in a file to the answers in `judgements`, and return how many are new or changed.

    The labels replace earlier answers for the same pairs. Raises DataError with all problems of the file, and then
    changes nothing.
    """
    require_mined(pairs_file)
    if not path.is_file():
        raise RunError(f"{path}: no such file; write one with --to, and fill in its column `relevant`")
    require_format(path, (*FORMATS, ".tsv"))
    keys = {key_of(pair): pair for pair in map(pair_of, pairs_in(pairs_file))}
    faults = Faults()
    rows = list(labels(read(path, faults), keys, _unknown(pairs_file.parents[1]), faults))
    given = _agreed([row for row in rows if row.relevant is not None], faults)
    faults.stop()
    with locked(judgements):
        new, changed = _merge(judgements, given)
    empty = sum(row.relevant is None for row in rows)
    counts = f"{len(given)} labels: {new} new, {changed} changed, {len(given) - new - changed} the same"
    console.stage("review", f"{counts}; {empty} rows without a label; all answers are in {judgements}")
    return new + changed


def _unknown(run: Path) -> Callable[[Pair], str]:
    """Return a function that gives the problem of a pair that is not in the run's collection."""
    collection = Collection.open(run / "data")
    ids = collection.query_ids
    queries = {ids[row] for judged in collection.qrels.values() for row in judged}
    documents = set(collection.document_ids)

    def problem(pair: Pair) -> str:
        unknown = [
            f"{what} {identity!r}"
            for what, identity, known in zip(("query", "document"), pair, (queries, documents), strict=True)
            if identity not in known
        ]
        if not unknown:
            return ""
        return (
            f"{' and '.join(unknown)} is not in the collection of {run}; spreadsheets change some ids, and the column "
            "`pair` is what such a row is recognised by"
        )

    return problem


def _agreed(rows: Sequence[Label], faults: Faults) -> dict[Pair, bool | int | None]:
    """Return the label of each pair; different labels of one pair are added to `faults`."""
    by_pair: dict[Pair, list[Label]] = {}
    for row in rows:
        by_pair.setdefault(row.pair, []).append(row)
    agreed: dict[Pair, bool | int | None] = {}
    for pair, several in by_pair.items():
        given = {json.dumps(row.relevant): row.relevant for row in several}
        if len(given) == 1:
            (agreed[pair],) = given.values()
        else:
            listed = ", ".join(f"{_name(row.relevant)} ({row.location})" for row in several)
            message = f"query {pair[0]!r}, document {pair[1]!r} has different labels: {listed}; keep one"
            faults.add("different labels of one pair", several[0].location, message)
    return agreed


def _name(relevant: bool | int | None) -> str:
    return NAMES[relevant] if isinstance(relevant, bool) else f"grade {relevant}"


def _merge(judgements: Path, given: Mapping[Pair, bool | int | None]) -> tuple[int, int]:
    """Replace the answers of the given pairs, append those of other pairs, and return how many are new and changed."""
    before = answers_in(judgements)
    answers: dict[Pair, Any] = {pair_of(line): line.get("relevant") for line in before}
    new = {pair for pair in given if answers.get(pair) is None}
    changed = [pair for pair in given if pair not in new and json.dumps(answers[pair]) != json.dumps(given[pair])]
    lines = [line | {"relevant": given.get(pair_of(line), line.get("relevant"))} for line in before]
    lines += [
        {"query_id": pair[0], "document_id": pair[1], "relevant": given[pair]} for pair in given if pair not in answers
    ]
    with replacing(judgements) as partial:
        partial.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return len(new), len(changed)
