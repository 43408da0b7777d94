"""Groups: what mining hands to training."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from trainer.runs import read_json, write_json


@dataclass(frozen=True)
class Group:
    """One training example of a query; all are row numbers, negatives come hardest first."""

    query: int
    positives: list[int]
    grades: list[int]
    negatives: list[int]
    teacher: list[float] | None = None  # a cross-encoder's logits of `documents`, where mining asked one

    @property
    def documents(self) -> list[int]:
        """All documents of the group, positives first."""
        return [*self.positives, *self.negatives]


def write_groups(groups: list[Group], folder: Path) -> None:
    """Keep the groups as `groups.json`."""
    write_json(folder / "groups.json", [asdict(group) for group in groups])


def read_groups(folder: Path) -> list[Group]:
    """Read what `write_groups` wrote."""
    return [Group(**group) for group in read_json(folder / "groups.json")]
