"""Groups, the training examples that mining writes and training reads."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trainer.data.collection import Collection
from trainer.runtime.run_folder import read_json, write_json


@dataclass(frozen=True)
class Group:
    """One training example: row numbers of a query, its positives and its negatives, hardest first."""

    query: int
    positives: list[int]
    grades: list[int]
    negatives: list[int]
    teacher: list[float] | None = None  # the teacher's logits of `documents`, if mining has a teacher
    first: list[float] | None = None  # first-stage scores of `documents`, standardised over the query's candidates

    @property
    def documents(self) -> list[int]:
        """All documents of the group, positives first."""
        return [*self.positives, *self.negatives]

    def described(self, collection: Collection) -> dict[str, Any]:
        """Return the group with ids and texts instead of rows, for people to read."""
        rows = self.documents
        columns = {
            "document_id": [collection.document_ids[row] for row in rows],
            "grade": self.grades + [0] * len(self.negatives),
            "teacher": self.teacher or [None] * len(rows),
            "text": collection.passages([collection.read_with(self.query, row) for row in rows]),
        }
        return {
            "query_id": collection.query_ids[self.query],
            "query": collection.query_texts([self.query])[0],
            "documents": [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)],
        }


def write_groups(groups: list[Group], folder: Path) -> None:
    """Save the groups as `groups.json`."""
    write_json(folder / "groups.json", [asdict(group) for group in groups])


def read_groups(folder: Path) -> list[Group]:
    """Read the groups that `write_groups` saved."""
    return [Group(**group) for group in read_json(folder / "groups.json")]
