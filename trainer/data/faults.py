"""Problems of a collection by kind: all are reported at once, at most ten of each kind."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from trainer.errors import DataError

SHOWN = 10  # problems of one kind that are listed; the others are counted


@dataclass
class Faults:
    """Problems by kind, so that ten thousand of one kind do not hide one of another."""

    kinds: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, kind: str, location: str, message: str) -> None:
        """Add one problem; `location` is file:line."""
        self.kinds[kind].append(f"{location}: {message}")

    def any_of(self, *kinds: str) -> bool:
        """Return True if there is a problem of one of these kinds."""
        return any(kind in self.kinds for kind in kinds)

    def lines(self) -> list[str]:
        """Return the first ten problems of each kind and the count of the others."""
        shown = []
        for kind, faults in self.kinds.items():
            shown += faults[:SHOWN]
            if len(faults) > SHOWN:
                shown.append(f"... and {len(faults) - SHOWN} more: {kind}")
        return shown

    def stop(self) -> None:
        """Raise DataError if there are any problems."""
        if self.kinds:
            raise DataError(self.lines())
