"""The queries that were made from documents, as the stage generate reported them."""

from __future__ import annotations

from typing import Any

from trainer.recipe.generate import EXTRACT
from trainer.reporting.facts import Facts
from trainer.runtime.run_folder import read_record


def made_queries(facts: Facts) -> dict[str, Any]:
    """Return counts and examples (report.json of the stage) with the queries' origin; empty without the stage."""
    made = read_record(facts.run / "generate" / "report.json") if "generate" in facts.notes else None
    if not made:
        return {}
    return made | {"origin": "parts of" if made["model"] == EXTRACT else f"the answers of {made['model']} about"}
