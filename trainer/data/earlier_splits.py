"""The splits of the run that the base model came from, so that a training that continues it is tested fairly.

An exported model folder has a file `splits.json` with hashes of the texts of all queries that its run judged, by split.
A later run with this model as base keeps these splits: a test query stays a test query, and a query that the model was
trained on does not become one. Queries are identified by their text, because ids may differ between data sets.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from trainer.data.records import SPLITS, SplitQrels, normalised
from trainer.errors import ModelError
from trainer.model_files import references
from trainer.runtime.run_folder import json_sha256, read_record, write_json

FILE = "splits.json"  # in the model folder; it is not uploaded, because a hash confirms a guess of a query
VERSION = 1
DIGITS = 16  # of a hash: two of a million queries collide with a probability of 1 in 37 million


@dataclass(frozen=True)
class EarlierSplits:
    """The splits of earlier runs: {hash of a query's text: split}, and the model that has them."""

    model: str
    by_hash: Mapping[str, str]

    @classmethod
    def of(cls, reference: str) -> EarlierSplits | None:
        """Return the splits in a base model's folder; None if it has none, or is not a folder on this machine.

        Raises ModelError for a damaged file.
        """
        if reference.startswith("package:") or not references.is_local(reference):
            return None
        try:
            path = references.locate(reference, weights=False) / FILE
        except ModelError:  # the check of the model reports it
            return None
        content = read_record(path)
        if content is None:
            return None
        if content.get("version") != VERSION or not all(_is_texts(content.get(split)) for split in SPLITS):
            raise ModelError(
                f"{path}: not the splits of a run, version {VERSION}; export the model again, or delete the "
                "file if no query of the new run was used to train or test this model"
            )
        return cls(reference, {text: split for split in SPLITS for text in content[split]})

    @property
    def fingerprint(self) -> str:
        """Hash of all splits."""
        return json_sha256(dict(self.by_hash))

    def split_of(self, text: str) -> str | None:
        """Return the split of a query's normalised text, None if the query is new."""
        return self.by_hash.get(hash_of(text))

    def save(self, folder: Path) -> None:
        """Write the splits into a model folder."""
        by_split: dict[str, list[str]] = {split: [] for split in SPLITS}
        for text, split in sorted(self.by_hash.items()):
            by_split[split].append(text)
        write_json(folder / FILE, {"version": VERSION, **by_split})

    def updated(self, texts: Mapping[str, list[str]]) -> EarlierSplits:
        """Return these splits with those of a new run, given as the texts of the queries by split.

        A text that is in several splits of the new run has none: its run was told that the test is not fair.
        """
        new: dict[str, set[str]] = {}
        for split, several in texts.items():
            for text in several:
                new.setdefault(hash_of(normalised(text)), set()).add(split)
        known = {text: split for text, split in self.by_hash.items() if text not in new}
        return EarlierSplits(self.model, known | {text: min(found) for text, found in new.items() if len(found) == 1})

    def note(self, qrels: SplitQrels, texts: Mapping[str, str]) -> str:
        """Return a message on how many queries were in the earlier splits."""
        known = [self.split_of(texts[query]) for judged in qrels.values() for query in judged]
        counts = ", ".join(f"{known.count(split)} {split}" for split in SPLITS)
        return f"{self.model} knows {counts} queries of earlier runs; {known.count(None)} queries are new"

    def conflict(self, qrels: SplitQrels, texts: Mapping[str, str]) -> str:
        """Return a message if a query would change between training and test, else an empty string."""
        tested = list(self._moved(qrels, texts, "test", ("train",)))
        trained = list(self._moved(qrels, texts, "train", ("dev", "test")))
        counts = []
        if tested:
            counts.append(f"{len(tested)} of its test queries are train queries here (e.g. {tested[0]!r})")
        if trained:
            counts.append(f"{len(trained)} of its train queries are dev or test queries here (e.g. {trained[0]!r})")
        if not counts:
            return ""
        return (
            f"{self.model} comes from a run with other splits: {' and '.join(counts)}, so the test would not be fair; "
            "give these queries the split that they had, or leave out the files of dev and test, so that the old "
            "splits are kept, or start from the model before that run"
        )

    def _moved(self, qrels: SplitQrels, texts: Mapping[str, str], before: str, now: tuple[str, ...]) -> Iterator[str]:
        for split in now:
            yield from (query for query in qrels[split] if self.split_of(texts[query]) == before)


def hash_of(text: str) -> str:
    """Return the hash of a query's normalised text."""
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)
