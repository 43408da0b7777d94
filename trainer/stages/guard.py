"""Guard: rank other collections with the model before training and with the exported one (`evaluate.guard`).

Every guard set is retrieved by the engines of the run with their default settings, because those tuned on the run's
own train queries do not fit another collection. A first stage that is only a run of the user's engine has no
candidates for it; BM25 takes its place.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from trainer import context, evaluation, retriever
from trainer.context import Notes, Run, Stage
from trainer.data import Collection, build_collection, fingerprint_data, guard_sets, guard_split
from trainer.recipe import GuardSet, Recipe, Retriever
from trainer.runtime import console
from trainer.runtime.run_folder import CONTENT, read_json, write_json


class Guard(Stage):
    """Measures each query of the guard sets, in a folder for each set; the stage evaluate judges the difference."""

    name = "guard"
    version = 2
    processes = "all"

    def is_wanted(self, recipe: Recipe) -> bool:
        """Return whether the recipe names guard sets."""
        return recipe.evaluate.guard is not None

    def inputs(self, recipe: Recipe) -> dict[str, Any]:
        """Return the hash of each set's content; models and depth are inputs of the stages before."""
        sets = guard_sets(recipe.evaluate)
        return {f"{CONTENT}guard set {name}": fingerprint_data(section) for name, section in sets.items()}

    def run(self, run: Run, folder: Path) -> Notes:
        """Measure the sets that an earlier start has not finished."""
        lines = []
        # Sorted, because the order of the recipe is no input: a start with another order continues in the same folders.
        for number, (name, section) in enumerate(sorted(guard_sets(run.recipe.evaluate).items()), start=1):
            path = folder / str(number) / evaluation.GUARD_VALUES
            if not run.on_main(path.is_file):
                _measure(run, name, section, path)
            lines.append(run.on_main(partial(_line, path)))
        return Notes("; ".join(lines))


def _measure(run: Run, name: str, section: GuardSet, path: Path) -> None:
    """Write the value of each query of a set under the first stage, the model before training and the exported one."""
    folder = path.parent

    def build() -> None:
        build_collection(section, folder)

    run.on_main(build)
    collection = Collection.open(folder)
    split = guard_split(collection)
    candidates = _retrieve(run, name, collection, split, folder)
    before = context.score_before(run, candidates, collection)
    after, trained = before, bool(run.notes(run.last_training)["trained_share"])
    if trained or context.changes_signals(run) or run.exported == "distil":
        stage = "distil" if run.exported == "distil" else "train"
        after = context.score(run, str(run.best(run.exported)), candidates, stage, collection)
    if run.is_main:
        scores = {"first_stage": None, "before": before, "after": after}
        values = {
            system: list(evaluation.query_scores(collection, split, candidates, evaluation.GUARD_METRIC, one).values())
            for system, one in scores.items()
        }
        write_json(path, {"set": name, "split": split, "documents": len(collection.documents), "values": values})


def _retrieve(run: Run, name: str, collection: Collection, split: str, folder: Path) -> retriever.Candidates:
    """Return the candidates that are reranked: as many of each query as in the run."""
    queries, path = collection.answerable(split), folder / "candidates.npz"
    console.stage("guard", f"{name}: {len(queries)} queries, {len(collection.documents)} documents")
    embeddings, _ = context.embed(run, collection, queries)
    section = first_stage(run.recipe.retriever)
    run.on_main(lambda: retriever.retrieve_unjudged(section, collection, queries, embeddings).save(path))
    return retriever.Candidates.load(path).top(run.recipe.rerank_depth)


def first_stage(section: Retriever) -> Retriever:
    """Return the run's engines without the user's own run, for a collection in any language."""
    kind = section.kind if section.run is None else "hybrid" if section.fuse_run else "bm25"
    return section.model_copy(update={"kind": kind, "run": None, "fuse_run": False, "language": "auto"})


def _line(path: Path) -> str:
    """Return the means of a set as a message."""
    measured = read_json(path)
    first, before, after = (sum(one) / len(one) for one in measured["values"].values())
    means = f"{first:.4f} by the first stage, {before:.4f} before training, {after:.4f} by the exported model"
    return f"{measured['set']}: {evaluation.GUARD_METRIC} {means}"
