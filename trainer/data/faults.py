"""Faults by kind: all are told at once, and ten thousand alike do not bury the one that differs."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from trainer.errors import DataError

SHOWN = 10  # faults of one kind that are listed; the rest are counted


@dataclass
class Faults:
    """Faults by kind, so that ten thousand alike do not bury the one that differs."""

    kinds: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, kind: str, place: str, message: str) -> None:
        """Note one fault; `place` is file:line."""
        self.kinds[kind].append(f"{place}: {message}")

    def any_of(self, *kinds: str) -> bool:
        """Whether a fault of one of these kinds was noted."""
        return any(kind in self.kinds for kind in kinds)

    def lines(self) -> list[str]:
        """All kinds, each with its first ten places and the count of the rest."""
        shown = []
        for kind, faults in self.kinds.items():
            shown += faults[:SHOWN]
            if len(faults) > SHOWN:
                shown.append(f"... and {len(faults) - SHOWN} more: {kind}")
        return shown

    def stop(self) -> None:
        """Raise DataError if anything was found."""
        if self.kinds:
            raise DataError(self.lines())
