"""Data: check and split the collection, and save it as Arrow files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trainer.context import Notes, Run, Stage, settings
from trainer.data import build_collection, fingerprint_data
from trainer.recipe import Recipe
from trainer.runtime.run_folder import CONTENT

FILES = {"path", "corpus", "queries", "qrels", "pairs", "dev", "test", "judgements"}  # identified by their content


class Data(Stage):
    """Builds the collection from the user's files."""

    name = "data"
    version = 5
    processes = "main"

    def inputs(self, recipe: Recipe) -> dict[str, Any]:
        """Return the keys that control reading, and the hash of the files' content."""
        return settings("data", recipe.data, FILES) | {CONTENT + "data": fingerprint_data(recipe.data)}

    def run(self, run: Run, folder: Path) -> Notes:
        """Check every line of the files and write documents, queries and qrels."""
        collection = build_collection(run.recipe.data, folder)
        return Notes(f"{len(collection.documents)} documents and {len(collection.queries)} queries as Arrow files")
