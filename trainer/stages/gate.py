"""The gate: whether the model may leave, by the verdict of evaluate."""

from __future__ import annotations

from trainer.context import Run
from trainer.errors import NotBetterError
from trainer.runtime import console


def require_better(run: Run, force: bool) -> None:
    """Raise NotBetterError where dev does not show that the model is better, unless forced."""
    from trainer.evaluation.gate import advice, leaves

    notes = run.notes("evaluate")
    if leaves(notes["verdict"]):
        return
    if not force:
        raise NotBetterError(f"export: {notes['judged']}, {advice(notes['verdict'])}")
    console.stage("export", f"{notes['judged']}; forced", style="red")


def refuse_worse(run: Run, force: bool) -> None:
    """Raise NotBetterError where the model is worse in both ways of use, unless forced."""
    from trainer.evaluation.gate import WORSE

    if run.notes("evaluate")["verdict"] == WORSE and not force:
        require_better(run, force)
