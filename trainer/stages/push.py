"""Push: upload the exported folder to the Hugging Face Hub, or list the files that would be uploaded."""

from __future__ import annotations

from trainer import export
from trainer.context import Run
from trainer.errors import RecipeError, RunError
from trainer.runtime import console


def require_section(run: Run) -> None:
    """Raise RecipeError if the recipe does not name a repository."""
    if run.recipe.push is None:
        raise RecipeError("push: the recipe has no push section; add `push:` with `repository: OWNER/NAME`")


def require_export(run: Run) -> None:
    """Raise RunError if the run folder does not contain this recipe's exported model, complete and unchanged."""
    if run.on_main(lambda: run.records["export"].done) is None:
        raise RunError(
            f"push: {run.folder / 'export'} does not contain this recipe's exported model, complete and unchanged; "
            "run the recipe first"
        )


def upload(run: Run, dry_run: bool) -> None:
    """Upload the exported model; with `dry_run` only list the files."""
    section = run.recipe.push
    assert section is not None
    folder = run.folder / "export" / "model"
    files = export.files_to_push(folder)
    size = sum(size for _, size in files) / 1e6
    if dry_run:
        for name, length in files:
            console.stage("push", f"{length:>12,} bytes  {name}")
        target = section.repository + (f", branch {section.revision}" if section.revision != "main" else "")
        created = f"created as {'private' if section.private else 'public'} if it does not exist"
        console.stage("push", f"{size:.1f} MB would be uploaded to {target} ({created}); nothing was sent")
    elif run.is_main:
        console.stage("push", f"{size:.1f} MB to {section.repository} ...")
        pushed = export.upload(section, folder)
        if pushed.private and not section.private:
            console.warn(
                "push", "the repository existed already and is private; make it public in its settings on the Hub"
            )
        visibility = "private" if pushed.private else "public"
        done = "done" if pushed.changed else "nothing has changed since the last push"
        console.stage("push", f"{done} ({visibility}): {pushed.address}")
