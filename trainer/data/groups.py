"""Groups: what mining hands to training."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trainer.data.collection import Collection
from trainer.runtime.run_folder import read_json, write_json


@dataclass(frozen=True)
class Group:
    """One training example of a query; all are row numbers, negatives come hardest first."""

    query: int
    positives: list[int]
    grades: list[int]
    negatives: list[int]
    teacher: list[float] | None = None  # a cross-encoder's logits of `documents`, where mining asked one
    first: list[float] | None = None  # first-stage scores of `documents`, standardised over the query's candidates

    @property
    def documents(self) -> list[int]:
        """All documents of the group, positives first."""
        return [*self.positives, *self.negatives]

    def described(self, collection: Collection) -> dict[str, Any]:
        """The group with ids and texts in place of rows, for people to look at."""
        rows = self.documents
        columns = {
            "document_id": [collection.document_ids[row] for row in rows],
            "grade": self.grades + [0] * len(self.negatives),
            "teacher": self.teacher or [None] * len(rows),
            "text": collection.passages(rows),
        }
        return {
            "query_id": collection.query_ids[self.query],
            "query": collection.query_texts([self.query])[0],
            "documents": [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)],
        }


def write_groups(groups: list[Group], folder: Path) -> None:
    """Keep the groups as `groups.json`."""
    write_json(folder / "groups.json", [asdict(group) for group in groups])


def read_groups(folder: Path) -> list[Group]:
    """Read what `write_groups` wrote."""
    return [Group(**group) for group in read_json(folder / "groups.json")]
