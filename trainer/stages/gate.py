"""The release gate: stop a model from being exported or pushed, by the verdict of the stage evaluate."""

from __future__ import annotations

from trainer import evaluation
from trainer.context import Run
from trainer.errors import NotBetterError
from trainer.runtime import console


def require_better(run: Run, force: bool) -> None:
    """Raise NotBetterError if dev does not show that the model is better, unless forced."""
    notes = run.notes("evaluate")
    if evaluation.passes(notes["verdict"]):
        return
    if not force:
        step = evaluation.advice(notes["verdict"], bool(notes.get("lost_guard_sets")))
        raise NotBetterError(f"export: {notes['judged']}, {step}")
    console.stage("export", f"{notes['judged']}; forced", style="red")


def refuse_worse(run: Run, force: bool) -> None:
    """Raise NotBetterError if the model is worse both alone and with first-stage scores, unless forced."""
    if run.notes("evaluate")["verdict"] == evaluation.WORSE and not force:
        require_better(run, force)
