"""The queries that were made from documents, as the stage generate reported them."""

from __future__ import annotations

from typing import Any

from trainer.reporting.facts import Facts
from trainer.runtime.run_folder import read_record


def made_queries(facts: Facts) -> dict[str, Any]:
    """Return counts and examples (report.json of the stage); empty without the stage."""
    return (read_record(facts.run / "generate" / "report.json") or {}) if "generate" in facts.notes else {}
