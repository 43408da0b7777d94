"""Upload the exported model of a recipe, or the one in a run folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trainer import pipeline
from trainer.commands.run_folders import recipe_from, recipe_in, recipe_of_stage
from trainer.context import Run
from trainer.errors import RecipeError, RunError
from trainer.runtime.run_folder import StageFolder, read_record


class RecordedRun(Run):
    """A run as recorded in its folder, independent of later changes to its recipe, data and models."""

    def _plan(self) -> dict[str, StageFolder]:
        """Return the folder of every stage with its recorded inputs."""
        records: dict[str, StageFolder] = {}
        previous = None
        for stage in self.stages:
            folder = self.folder / stage.folder
            depends = (read_record(folder / "done.json") or {}).get("depends")
            previous = StageFolder.of(folder, depends if isinstance(depends, dict) else {}, previous)
            records[stage.folder] = previous
        return records


def push_recipe(path: Path, overrides: Sequence[str], runs: Path, dry_run: bool, force: bool) -> None:
    """Upload the exported model of a recipe; raises RunError if the run folder holds the model of another recipe."""
    pipeline.push(recipe_from(path, overrides, runs), runs, dry_run=dry_run, force=force)


def push_run(folder: Path, overrides: Sequence[str], dry_run: bool, force: bool) -> None:
    """Upload the exported model in a run folder, if it is intact, to the repository of its recipe.

    An override may name another repository. The recipe's file, data and models are not needed.
    """
    exported = folder / "export"
    has_recipe = (exported / "recipe.json").is_file()
    recipe = recipe_of_stage(exported, overrides) if has_recipe else recipe_in(folder, overrides)
    if recipe.push is None:
        raise RecipeError(
            f"{folder}: its recipe has no push section; name the repository: reranker push {folder} "
            "push.repository=OWNER/NAME"
        )
    _require_verdict(folder)
    pipeline.push(RecordedRun(recipe, folder, pipeline.STAGES), dry_run=dry_run, force=force)


def _require_verdict(folder: Path) -> None:
    """Raise RunError for a finished evaluation without a verdict, as written by older versions."""
    notes = read_record(folder / "evaluate" / "done.json")
    if notes and not all(isinstance(notes.get(key), str) for key in ("verdict", "judged")):
        raise RunError(
            f"push: {folder / 'evaluate'} holds no verdict (it is by an older version); run the recipe again"
        )
