"""The corpus of a run, with the run's own first stage: candidates of new queries for the server and `search`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trainer.data import Collection
from trainer.errors import RunError
from trainer.model.fusion import Fusion
from trainer.model_files import references
from trainer.model_files.pins import read_pins
from trainer.recipe import Recipe, load_recipe
from trainer.retriever import Searcher, Tuning
from trainer.runtime.machine import EMBEDDINGS
from trainer.runtime.run_folder import read_record


@dataclass(frozen=True)
class Found:
    """The candidates of one query that are reranked, best first: ids, texts and first-stage scores (n,) float32."""

    ids: list[str]
    texts: list[str]
    scores: np.ndarray

    def fused(self, logits: np.ndarray, fusion: Fusion | None) -> np.ndarray:
        """Return the final scores (n,): the logits fused with the first stage's scores if there are weights."""
        return logits if fusion is None or not len(logits) else fusion.apply(logits, self.scores, "scores")

    def results(self, final: np.ndarray, public: Sequence[float], most: int | None = None) -> list[dict[str, Any]]:
        """Return the best `most` documents (None: all) by their final scores; ties keep the first stage's order.

        `public` are the scores to show.
        """
        best: list[int] = np.argsort(-final, kind="stable").tolist()[:most]
        return [
            {
                "rank": rank,
                "first_stage_rank": index + 1,
                "id": self.ids[index],
                "relevance_score": public[index],
                "first_stage_score": float(self.scores[index]),
                "text": self.texts[index],
            }
            for rank, index in enumerate(best, start=1)
        ]


class Corpus:
    """The documents of a run and its first stage."""

    def __init__(self, collection: Collection, searcher: Searcher, depth: int) -> None:
        self._collection = collection
        self._searcher = searcher
        self.depth = depth  # candidates that are reranked
        self.documents = len(collection.documents)

    @classmethod
    def open(cls, run: Path, trust_remote_code: bool = False) -> Corpus:
        """Open the corpus of a finished run; raises TrainerError if the run or its bi-encoder is incomplete."""
        recipe = _recipe(run)
        references.pin(read_pins(run))
        collection = Collection.open(run / "data")
        settings = Tuning.load(run / "retrieve").settings
        cache = run.absolute().parent / EMBEDDINGS
        searcher = Searcher.open(recipe.retriever, collection, settings, cache, trust_remote_code)
        return cls(collection, searcher, recipe.rerank_depth)

    def search(self, query: str) -> Found:
        """Return the candidates of a query that are reranked."""
        rows, scores = self._searcher.search(query)
        rows, scores = rows[: self.depth], scores[: self.depth]
        ids = self._collection.documents.select(rows)["id"][:] if len(rows) else []
        return Found(ids, self._collection.passages(rows.tolist()) if len(rows) else [], scores)


def _recipe(run: Path) -> Recipe:
    """Return the recipe of a run's first stage; raises RunError unless the exported model was trained with it."""
    done = {path.parent.name: record for path in run.glob("*/done.json") if (record := read_record(path))}
    missing = [name for name in ("data", "retrieve", "export") if name not in done]
    if missing:
        raise RunError(f"search: {run} has no finished stage {' and '.join(missing)}; finish the run: train RECIPE")
    by_content = {record.get("content"): name for name, record in done.items() if "." not in name}
    before: str | None = "export"
    while before not in (None, "retrieve"):
        before = by_content.get(done[before].get("before"))
    if before is None:
        raise RunError(
            f"search: the first stage in {run} is of another recipe than its exported model; finish the run: train "
            "RECIPE"
        )
    return load_recipe(run / "retrieve" / "recipe.json")
