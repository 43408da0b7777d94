"""Guard sets: other collections, on which a run only measures its models (`evaluate.guard`)."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from trainer.data.collection import Collection
from trainer.data.qrels import needed_splits, reader_of, split_qrels
from trainer.data.records import has_positive, normalised
from trainer.data.sources import fingerprint_data
from trainer.errors import DataError
from trainer.recipe import HUB, Data, Evaluate, GuardSet
from trainer.runtime.run_folder import read_record, write_json

MEASURED = ("test", "dev", "train")  # the first of these splits with a judged query is measured
VERSION = 1  # raised when the check would give another result for the same sets


def guard_sets(section: Evaluate) -> dict[str, GuardSet]:
    """Return the data section of each guard set by its name: the end of its path, as long as needed to be unique."""
    paths = section.guard or ()
    parts = [Path(str(path).removeprefix(HUB)).parts for path in paths]
    length = 1
    while len({one[-length:] for one in parts}) < len(parts):
        length += 1
    names = ["/".join(one[-length:]) for one in parts]
    return {name: GuardSet(path=path) for name, path in zip(names, paths, strict=True)}


def guard_split(collection: Collection) -> str:
    """Return the split of a guard set that is measured."""
    return next(split for split in MEASURED if collection.answerable(split))


@dataclass(frozen=True)
class Overlap:
    """The size of a guard set, and how many of its texts are in the run's own collection too.

    `queries` are those of the measured split that have a relevant document.
    """

    documents: int
    queries: int
    split: str
    shared_documents: int
    shared_queries: int


class _Texts(NamedTuple):
    """Hashes of normalised texts: of all documents, and of the queries of the measured split, or of all queries."""

    documents: array[int]
    queries: array[int]
    split: str = ""


def check_guard_sets(section: Evaluate, own: Data, cache: Path, keep: bool) -> dict[str, Overlap]:
    """Read all guard sets once, and return by name how far each overlaps the run's own collection.

    The result for unchanged files is read from `cache`, and `keep` writes it there. Raise DataError with the problems
    of all sets. Invalid rows of the own collection are skipped: `check_collection` reports them.
    """
    sets, faults = guard_sets(section), []
    fingerprints: list[str] = []
    read: dict[str, _Texts] = {}
    for guard in (*sets.values(), own):
        try:
            fingerprints.append(fingerprint_data(guard))
        except DataError as error:
            faults += error.faults if guard is own else _of_guard(error)
    key = [VERSION, *fingerprints]
    if not faults and (known := _recorded(read_record(cache) or {}, key)):
        return known
    for name, guard in sets.items():
        try:
            read[name] = _read_guard(guard)
        except DataError as error:
            faults += _of_guard(error)
    if faults:
        raise DataError(dict.fromkeys(faults))
    overlaps = dict(_overlaps(read, _read_own(own)))
    if keep:
        write_json(cache, {"key": key, "sets": {name: asdict(overlap) for name, overlap in overlaps.items()}})
    return overlaps


def _of_guard(error: DataError) -> list[str]:
    return [f"evaluate.guard: {fault}" for fault in error.faults]


def _recorded(record: Mapping[str, Any], key: list[Any]) -> dict[str, Overlap]:
    """Return the overlaps in the record of an earlier check; none if it is of other files, or damaged."""
    try:
        return {name: Overlap(**overlap) for name, overlap in record["sets"].items()} if record["key"] == key else {}
    except (AttributeError, KeyError, TypeError):
        return {}


def _hashes(texts: Iterable[str]) -> array[int]:
    return array("q", (hash(normalised(text)) for text in texts))


def _read_guard(section: GuardSet) -> _Texts:
    """Read every line of a guard set; raise DataError with its problems, among them that no query can be measured."""
    reader = reader_of(section)
    documents = _hashes(document.passage for document in reader.documents())
    texts = {query.id: normalised(query.text) for query in reader.queries()}
    qrels, _ = split_qrels(reader, section, texts, needed_splits(section))
    for split in MEASURED:
        judged = [query for query, grades in qrels[split].items() if has_positive(grades, section.relevant_from)]
        if judged:
            return _Texts(documents, array("q", (hash(texts[query]) for query in judged)), split)
    raise DataError(f"{section.path}: no query has a relevant document, so nothing can be measured")


def _read_own(section: Data) -> _Texts:
    reader = reader_of(section)
    documents = _hashes(document.passage for document in reader.documents())
    return _Texts(documents, _hashes(query.text for query in reader.queries()))


def _overlaps(read: Mapping[str, _Texts], own: _Texts) -> Iterator[tuple[str, Overlap]]:
    import numpy as np

    for name, texts in read.items():
        shared = (int(np.isin(*pair).sum()) for pair in zip(texts[:2], own[:2], strict=True))
        yield name, Overlap(len(texts.documents), len(texts.queries), texts.split, *shared)
