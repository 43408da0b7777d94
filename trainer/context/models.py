"""The models of a run: loaded, measured, asked as a teacher, and the best one kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trainer import retriever
from trainer.context.run import Run
from trainer.data import Collection
from trainer.data.groups import Group
from trainer.evaluation.fusion import Weights, fit, fitted_lists, lists_to_fit, try_weights
from trainer.evaluation.two_stage import mean_score, query_scores
from trainer.mining import candidate_lists
from trainer.model import Reranker, TokenizedCollection, fit_length, rerank
from trainer.model.fusion import Kind
from trainer.model.teacher import Teacher
from trainer.model_files import references
from trainer.retriever import BiEncoder, Candidates, Embeddings
from trainer.runtime import console
from trainer.runtime.precision import Precision
from trainer.runtime.run_folder import read_json, write_json
from trainer.training import FITTED, Progress, choose

BETWEEN = "between.json"  # each dev query's value under the models that lie between start and trained one


def has_fresh_head(run: Run) -> bool:
    """Return whether the base brings no head of its own."""
    return references.kind_of(references.locate(run.recipe.reranker.model)) == "encoder"


def load_base(run: Run) -> Reranker:
    """Return the base as it is before any training, under the head that it will have."""
    section = run.recipe.reranker
    reranker = Reranker.load(
        section.model,
        head=section.head,
        max_length=section.max_length,
        layers=section.layers,
        trust_remote_code=section.trust_remote_code,
    )
    reranker.fusion = None  # a base's own belongs to its weights as they were
    if section.max_length is None and (said := fit_length(reranker, run.collection, run.reranked("train"))):
        console.stage("train", said)
    return reranker


def lists_for_head(run: Run) -> list[Group]:
    """Return the train queries' candidates that a fresh head is fitted to; none where the base brings its own."""
    return candidate_lists(run.collection, run.reranked("train")) if has_fresh_head(run) else []


def load(run: Run, reference: str, stage: str = "train", precision: Precision = "fp32") -> Reranker:
    """Load a base that ranks, or a model that a training stage left."""
    length, trust = run.recipe.reranker.max_length, may_run_code(run, stage)
    return Reranker.load(reference, head="trained", max_length=length, precision=precision, trust_remote_code=trust)


def may_run_code(run: Run, stage: str) -> bool:
    """Return whether the code that came with a training stage's model may run: as for what it was trained from."""
    section = run.recipe.distil
    if stage == "distil" and section is not None:
        return section.model is not None and section.trust_remote_code
    return run.recipe.reranker.trust_remote_code


def score(run: Run, reference: str, candidates: Candidates, stage: str = "train") -> np.ndarray:
    """Return float32 scores (queries, depth) of candidates by a saved model: a base, or a stage's best."""
    reranker = load(run, reference, stage)
    tokenized = TokenizedCollection(run.collection, reranker.pairs)
    return rerank(reranker, tokenized, candidates, run.accelerator, note="evaluate")


def measure(
    run: Run,
    split: str,
    reranker: Reranker,
    tokenized: TokenizedCollection,
    candidates: Candidates | None = None,
) -> tuple[float, np.ndarray]:
    """Return the two-stage score of the model in its own precision, and its scores (queries, depth)."""
    found = candidates or run.candidates(split)
    scores = rerank(reranker, tokenized, found.top(run.recipe.rerank_depth), run.accelerator, note=split)
    return mean_score(run.collection, split, found, run.metric, scores), scores


def dev_measure(run: Run, reranker: Reranker, tokenized: TokenizedCollection) -> Callable[[], float]:
    """Return a function that gives the dev score of the model at the time of the call."""
    dev = run.candidates("dev")  # read once for all evaluations
    return lambda: measure(run, "dev", reranker, tokenized, dev)[0]


def keep_best(run: Run, folder: Path, progress: Progress, stage: str, **options: Any) -> list[tuple[float, float]]:
    """Leave the best of the start, the trained model and those between them in `best`; return the dev curve.

    Each dev query's values are kept in `between.json`, so that the gate can repeat the choice in its resamples.
    """
    between: list[list[float]] = []

    def measure_dev(reranker: Reranker) -> float:
        scores = measure(run, "dev", reranker, TokenizedCollection(run.collection, reranker.pairs))[1]
        values = query_scores(run.collection, "dev", run.candidates("dev"), run.metric, scores).values()
        between.append(list(values))
        return float(np.mean(between[-1]))

    def load_saved(path: Path) -> Reranker:
        return load(run, str(path), stage, progress.precision)

    curve = choose(folder, progress, load_saved, measure_dev, run.accelerator, **options)
    run.on_main(lambda: write_json(folder / BETWEEN, between))
    return curve


def teacher(run: Run, reference: str, collection: Collection, trust_remote_code: bool = False) -> Teacher:
    """Return a cross-encoder that is asked for scores of the collection's rows."""
    options = {"max_length": run.recipe.reranker.max_length, "trust_remote_code": trust_remote_code}
    folder = references.locate(reference)
    precision = run.precision(
        "teacher", "scoring", folder, lambda: Reranker.load(folder, head="trained", **options).bf16_speedup()
    )
    cache = run.folder.parent / ".teachers"
    return Teacher(reference, collection, cache, run.accelerator, precision=precision, **options)


def first_stage_weights(
    run: Run, scores: np.ndarray, kinds: Sequence[Kind] = ("scores", "order")
) -> dict[Kind, Weights]:
    """Return the first stage's weights beside a model, given the model's scores (queries, depth) of dev.

    They are fitted with the scores of the model before training, which has not learned the train lists.
    """
    collection, dev = run.collection, run.candidates("dev")
    lists, before = _before_training(run)
    fitted = {kind: fit(collection, lists, before, kind) for kind in kinds}
    return {kind: try_weights(collection, dev, run.metric, scores, fitted[kind], kind) for kind in kinds}


def _before_training(run: Run) -> tuple[Candidates, np.ndarray]:
    """Return train queries and the scores of their candidates by the model before training, as its head was fitted."""
    train, path = run.reranked("train"), run.folder / run.last_training / FITTED
    if path.is_file():
        return fitted_lists(train, read_json(path)["logits"])
    lists = lists_to_fit(run.collection, train)
    return lists, score(run, str(run.start), lists)


def embed(
    run: Run, collection: Collection, queries: Sequence[int] | None = None
) -> tuple[tuple[Embeddings, Embeddings] | None, str]:
    """Return the vectors of query rows (None: the judged) and of documents, and in words how many are new."""

    def choose(bi_encoder: BiEncoder) -> Precision:
        device = str(run.accelerator.device)
        return run.precision("retrieve", "encoding", bi_encoder.folder, lambda: bi_encoder.bf16_speedup(device))

    if run.recipe.bi_encoder is None:
        return None, ""  # and no Accelerate is started
    cache = run.folder.parent / ".embeddings"
    return retriever.embed(run.recipe.retriever, collection, cache, run.accelerator, queries, choose)
