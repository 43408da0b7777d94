"""Data: check and split the collection, and save it as Arrow files."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from trainer.context import Notes, Run, Stage, settings
from trainer.data import EarlierSplits, build_collection, fingerprint_data
from trainer.data.collection import CLICKED
from trainer.forecast import Cost, Work
from trainer.recipe import Recipe
from trainer.runtime import processes
from trainer.runtime.lock import hold
from trainer.runtime.run_folder import CONTENT, read_record, remove

DOCUMENT = 3e-4  # seconds to check a document, look for its duplicates and write it
FILES = {
    "path",
    "corpus",
    "queries",
    "qrels",
    "clicks",
    "pairs",
    "dev",
    "test",
    "judgements",
}  # identified by their content


class Data(Stage):
    """Builds the collection from the user's files."""

    name = "data"
    version = 5
    processes = "main"

    def inputs(self, recipe: Recipe) -> dict[str, Any]:
        """Return the keys that control reading, and the hash of the files' content."""
        files = {CONTENT + "data": fingerprint_data(recipe.data)}
        if earlier := EarlierSplits.of(recipe.reranker.model):
            files[CONTENT + "reranker.model's splits"] = earlier.fingerprint
        return settings("data", recipe.data, FILES) | files

    def run(self, run: Run, folder: Path) -> Notes:
        """Check every line of the files and write documents, queries and qrels."""
        earlier = EarlierSplits.of(run.recipe.reranker.model)
        needed = () if run.recipe.generate else None
        collection = build_collection(run.recipe.data, folder, earlier, needed)
        line = f"{len(collection.documents)} documents and {len(collection.queries)} queries as Arrow files"
        clicks = read_record(folder / CLICKED)
        return Notes(line, {"clicks": clicks} if clicks else {})

    def forecast(self, work: Work) -> Cost:
        """Return the cost of reading every text and writing it as Arrow."""
        return work.plain(1.0 + work.documents * DOCUMENT) + Cost(bytes=2 * work.characters)


def keep_collection(recipe: Recipe, folder: Path) -> Recipe:
    """Return the recipe with its collection from memory saved in the run folder; other recipes are returned unchanged.

    So the recipe in the run folder can be run again, reviewed and pushed without the Python objects. Only the main
    process writes; the others read their own temporary files, which have the same content.
    """
    source = recipe.data.path
    if source is None or not recipe.data.is_temporary or not processes.is_main():
        return recipe
    kept = folder / f"{recipe.name}-collection"  # the last part names the collection in the model card
    partial = kept.with_name(f".{kept.name}.partial")
    with hold(folder / ".lock", "run"):
        remove(partial)
        shutil.copytree(source, partial)
        remove(kept)
        partial.rename(kept)
    return recipe.model_copy(update={"data": recipe.data.moved(kept)})
