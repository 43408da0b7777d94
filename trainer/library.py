"""Mining and evaluation as single functions for Python, without a recipe and a run folder.

They call the same functions as the stages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from trainer import mining
from trainer.data import SPLITS, Collection
from trainer.errors import DataError, did_you_mean
from trainer.evaluation.fusion import fuse_with_first_stage
from trainer.evaluation.gate import Release
from trainer.evaluation.results import Results
from trainer.evaluation.two_stage import measure, summarise
from trainer.model import Reranker, TokenizedCollection, rerank, score_rows
from trainer.recipe import RERANK_DEPTH, Evaluate, Mine, Retriever
from trainer.retriever import Candidates, candidates_of_dict, embed, retrieve_splits
from trainer.runtime.machine import EMBEDDINGS, explained

FirstStage = Retriever | Mapping[str, Mapping[str, float]]
OF_A_RUN = ("groups", "list_size", "rounds", "teacher", "teacher_trust_remote_code")  # keys that `mine` does not use


@dataclass(frozen=True)
class Evaluation:
    """The evaluation of a reranker on one split: `results` with intervals and comparisons, and every query's values."""

    results: Results
    per_query: dict[str, dict[str, dict[str, float]]]
    """{system: {metric: {query id: value}}}"""

    @property
    def table(self) -> list[dict[str, float | str]]:
        """The means: a dict for each system, with its name under `system` and each metric under its own."""
        return self.results.table


@explained
def mine(
    collection: Collection,
    first_stage: FirstStage | None = None,
    *,
    teacher: Reranker | None = None,
    seed: int = 13,
    runs: Path | str = "runs",
    **settings: Any,
) -> dict[str, list[str]]:
    """Return hard negatives of the train queries, {query id: [document id, ...]}, the hardest first.

    `first_stage` is a `Retriever` section, as in a recipe, or a run of your own, {query id: {document id: score}}. The
    `teacher` scores candidates, so that likely positives can be left out. `settings` are keys of the recipe's section
    `mine`, such as negatives_per_positive=3. Embeddings are kept under `runs`. Raises TrainerError.
    """
    if unread := [key for key in OF_A_RUN if key in settings]:
        raise TypeError(f"mine() does not use {', '.join(unread)}; only a run with a recipe does")
    section = Mine(groups="draws", **settings)
    candidates = _candidates(collection, "train", first_stage, runs)
    score = None
    if teacher is not None:
        tokenized = TokenizedCollection(collection, teacher.pairs)
        score = partial(score_rows, teacher, tokenized, accelerator=None, note="teacher")
    mined = mining.mine(section, collection, candidates, seed, score)
    negatives: dict[str, list[str]] = {}
    for group in mined.groups:
        found = negatives.setdefault(collection.query_ids[group.query], [])
        found += [name for row in group.negatives if (name := collection.document_ids[row]) not in found]
    return negatives


@explained
def evaluate(
    collection: Collection,
    reranker: Reranker,
    first_stage: FirstStage | None = None,
    *,
    split: str = "test",
    depth: int = RERANK_DEPTH,
    metrics: Sequence[str] = Evaluate().metrics,
    seed: int = 13,
    runs: Path | str = "runs",
) -> Evaluation:
    """Measure a reranker on the candidates of a first stage: retrieve, rerank the first `depth`, compare.

    `first_stage` is a `Retriever` section, as in a recipe, or a run of your own, {query id: {document id: score}}. The
    systems are first_stage, reranked, fused if the model has weights for first-stage scores, and ceiling, the best
    order of the candidates. Embeddings are kept under `runs`. Raises TrainerError.
    """
    if not isinstance(reranker, Reranker):
        raise TypeError(f"reranker must be a Reranker, not {type(reranker).__name__}; load one with Reranker.load")
    if depth < 1:
        raise ValueError(f"depth must be 1 or more, not {depth}")
    metrics = Evaluate(metrics=tuple(metrics)).metrics
    candidates = _candidates(collection, split, first_stage, runs)
    scores = rerank(reranker, TokenizedCollection(collection, reranker.pairs), candidates.top(depth), None, note=split)
    systems = {"reranked": scores}
    if reranker.fusion is not None:
        systems["fused"] = fuse_with_first_stage(candidates, scores, reranker.fusion.scores)
    measured = measure(collection, split, candidates, systems, metrics)
    return Evaluation(summarise(measured, split, seed, Release(shipped="reranked")), measured.values)


def _candidates(collection: Collection, split: str, first_stage: FirstStage | None, runs: Path | str) -> Candidates:
    """Return the candidates of a split's queries; raises DataError if none of them has a positive."""
    if split not in SPLITS:
        raise ValueError(f"split: {split!r} is not a split{did_you_mean(split, SPLITS)}")
    if not collection.answerable(split):
        raise DataError(f"{split}: no query of this split has a relevant document; give its judgements in qrels")
    if isinstance(first_stage, Mapping):
        return candidates_of_dict(first_stage, collection, split)
    section = Retriever() if first_stage is None else first_stage
    if not isinstance(section, Retriever):
        raise TypeError(f"first_stage must be a Retriever section or a dict, not {type(section).__name__}")
    embeddings = None
    if section.bi_encoder is not None:
        from trainer.runtime.launch import start_accelerator

        embeddings, _ = embed(section, collection, Path(runs) / EMBEDDINGS, start_accelerator("fp32"))
    with TemporaryDirectory() as folder:
        return retrieve_splits(section, collection, embeddings, Path(folder))[split]
