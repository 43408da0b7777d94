"""Load, score, evaluate and select the models of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from trainer import retriever
from trainer.context.endpoints import EndpointTeacher
from trainer.context.run import Run
from trainer.data import Collection
from trainer.data.groups import Group
from trainer.evaluation.fusion import FEWEST, Weights, fit, fitted_lists, lists_to_fit, start_on_dev, try_weights
from trainer.evaluation.statistics import measured_detectable
from trainer.evaluation.two_stage import mean_score, query_scores
from trainer.mining import candidate_lists
from trainer.model import Reranker, TokenizedCollection, fit_length, has_mixture, rerank
from trainer.model.fusion import Kind
from trainer.model.teacher import Teacher
from trainer.model_files import references
from trainer.model_files.decoders import Prompting, ranks_already
from trainer.recipe import is_endpoint
from trainer.retriever import BiEncoder, Candidates, Embeddings
from trainer.runtime import console
from trainer.runtime.machine import EMBEDDINGS, TEACHERS
from trainer.runtime.precision import Precision
from trainer.runtime.run_folder import read_json, write_json
from trainer.training import FITTED, Progress, choose

BETWEEN = "between.json"  # each dev query's value under the interpolated models


def has_fresh_head(run: Run) -> bool:
    """Return whether the base model has no head of its own, so that a new one is needed."""
    return references.kind_of(references.locate(run.recipe.reranker.model)) == "encoder"


def base_ranks(run: Run) -> bool:
    """Return whether the base model was trained to rank: not an encoder without a head, nor a general decoder."""
    folder = references.locate(run.recipe.reranker.model)
    return not has_fresh_head(run) and (references.kind_of(folder) != "decoder" or ranks_already(folder))


def load_base(run: Run) -> Reranker:
    """Return the base model before any training, with the head of the recipe."""
    section = run.recipe.reranker
    reranker = Reranker.load(
        section.model,
        head=section.head,
        max_length=section.max_length,
        layers=section.layers,
        trust_remote_code=section.trust_remote_code,
        prompting=Prompting.of(section),
    )
    reranker.fusion = reranker.calibration = None  # those of the base do not fit the trained weights
    if not section.lexical_signals:
        reranker.mixture = None
    reranker.passages = run.recipe.passages
    if section.max_length is None and (message := fit_length(reranker, run.collection, run.reranked("train"))):
        console.stage("train", message)
    return reranker


def load_base_to_train(run: Run, stage: str) -> Reranker:
    """Return the base model before any training, in the precision that a training stage has."""
    reranker = load_base(run)
    base, faster = references.locate(run.recipe.reranker.model), partial(reranker.bf16_speedup, training=True)
    reranker.compute_in(run.precision(stage, "training", base, faster))
    return reranker


def lists_for_fit(run: Run) -> list[Group]:
    """Return the train queries' candidates that a new head, or the mixture of a standard checkpoint, is fitted to.

    Empty if the base has an interaction head, which has been fitted.
    """
    fitted = references.kind_of(references.locate(run.recipe.reranker.model)) == "interaction"
    return [] if fitted else candidate_lists(run.collection, run.reranked("train"))


def load(run: Run, reference: str, stage: str = "train", precision: Precision = "fp32") -> Reranker:
    """Return a base model that is a reranker, or the saved model of a training stage."""
    length, trust = run.recipe.reranker.max_length, may_run_code(run, stage)
    return Reranker.load(reference, head="trained", max_length=length, precision=precision, trust_remote_code=trust)


def may_run_code(run: Run, stage: str) -> bool:
    """Return whether code in the model of a training stage may run, as the recipe allows it for the stage's base."""
    section = run.recipe.distil
    if stage == "distil" and section is not None:
        return section.model is not None and section.trust_remote_code
    return run.recipe.reranker.trust_remote_code


def score(
    run: Run,
    reference: str,
    candidates: Candidates,
    stage: str = "train",
    collection: Collection | None = None,
    windows: bool = True,
    mixture: bool = True,
) -> np.ndarray:
    """Return a saved model's float32 scores (queries, depth) of candidates, by default of the run's collection.

    Without `windows` long documents are truncated, also if the model reads them in windows; without `mixture` the
    score is the logit, also if the model adds lexical signals to it. Other libraries know neither.
    """
    reranker = load(run, reference, stage)
    reranker.passages = reranker.passages if windows else None
    reranker.mixture = reranker.mixture if mixture else None
    tokenized = TokenizedCollection(collection or run.collection, reranker.pairs)
    return rerank(reranker, tokenized, candidates, run.accelerator, note="evaluate")


def score_before(run: Run, candidates: Candidates, collection: Collection | None = None) -> np.ndarray:
    """Return the float32 scores (queries, depth) of the model before training: the base as it was, or a fitted head.

    Lexical signals that this run fitted beside the base's logit are not the base's; those that it brought are.
    """
    base = references.locate(run.recipe.reranker.model)
    own = has_mixture(base)
    model = base if own and not has_mixture(run.start) else run.start  # with `lexical_signals: false`
    return score(run, str(model), candidates, collection=collection, mixture=own or has_fresh_head(run))


def changes_signals(run: Run) -> bool:
    """Return whether this run added lexical signals beside the base's logit, or left out those that it brought."""
    return has_mixture(run.start) != has_mixture(references.locate(run.recipe.reranker.model))


def measure(
    run: Run,
    split: str,
    reranker: Reranker,
    tokenized: TokenizedCollection,
    candidates: Candidates | None = None,
) -> tuple[float, np.ndarray]:
    """Return the mean metric after reranking, in the model's own precision, and its scores (queries, depth)."""
    candidates = candidates or run.candidates(split)
    scores = rerank(reranker, tokenized, candidates.top(run.recipe.rerank_depth), run.accelerator, note=split)
    # Computed once for all processes: a mean rounded differently could stop training early in only some of them.
    return run.on_main(lambda: mean_score(run.collection, split, candidates, run.metric, scores)), scores


def dev_measure(run: Run, reranker: Reranker, tokenized: TokenizedCollection) -> Callable[[], float]:
    """Return a function that computes the dev score of the model's current weights.

    Its first call, before training, also prints the smallest difference that dev can detect.
    """
    dev = run.candidates("dev")  # read once for all evaluations
    calls = count()

    def measured() -> float:
        mean, scores = measure(run, "dev", reranker, tokenized, dev)
        if next(calls) == 0:
            run.on_main(lambda: _show_detectable(run, dev, scores))
        return mean

    return measured


def _show_detectable(run: Run, dev: Candidates, scores: np.ndarray) -> None:
    """Print the smallest difference to the first stage that dev can detect, from the model's scores."""
    ours, first = (list(query_scores(run.collection, "dev", dev, run.metric, one).values()) for one in (scores, None))
    if least := measured_detectable(np.subtract(ours, first)):
        message = f"differences of {least:.3f} {run.metric} or more to the first stage can be detected with these"
        console.stage("train", f"{message} {len(ours)} dev queries (power 80 %; spread measured with this model)")


def keep_best(run: Run, folder: Path, progress: Progress, stage: str, **options: Any) -> list[tuple[float, float]]:
    """Save the best model on dev in `best`, and return the dev curve.

    It is the model before training, the trained one, or an interpolation between them. Each dev query's values under
    the interpolations are written to `between.json`, so that the release gate can repeat the choice in its resamples.
    """
    between: list[list[float]] = []

    def values(scores: np.ndarray) -> list[float]:
        return list(query_scores(run.collection, "dev", run.candidates("dev"), run.metric, scores).values())

    def measure_dev(reranker: Reranker) -> float:
        scores = measure(run, "dev", reranker, TokenizedCollection(run.collection, reranker.pairs))[1]
        between.append(run.on_main(lambda: values(scores)))
        return float(np.mean(between[-1]))

    def load_saved(path: Path) -> Reranker:
        return load(run, str(path), stage, progress.precision)

    curve = choose(folder, progress, load_saved, measure_dev, run.accelerator, **options)
    run.on_main(lambda: write_json(folder / BETWEEN, between))
    return curve


def teacher(
    run: Run, reference: str, collection: Collection, trust_remote_code: bool = False, key: str = ""
) -> Teacher | EndpointTeacher:
    """Return a cross-encoder or an endpoint that scores pairs of the collection's rows and keeps its scores.

    `key` is the recipe's key that names an endpoint. The recipe's base has the recipe's prompt as a teacher too.
    """
    if is_endpoint(reference):
        return EndpointTeacher(run, key, collection, key.partition(".")[0])
    section = run.recipe.reranker
    options: dict[str, Any] = {
        "max_length": section.max_length,
        "trust_remote_code": trust_remote_code,
        "prompting": Prompting.of_model(section, reference),
    }
    folder = references.locate(reference)
    precision = run.precision(
        "teacher", "scoring", folder, lambda: Reranker.load(folder, head="trained", **options).bf16_speedup()
    )
    cache = run.folder.parent / TEACHERS
    options |= {"precision": precision, "passages": run.recipe.passages}
    return Teacher(reference, collection, cache, run.accelerator, **options)


def first_stage_weights(
    run: Run, scores: np.ndarray, kinds: Sequence[Kind] = ("scores", "order")
) -> dict[Kind, Weights]:
    """Return the first stage's weights in the fusion with a model that has these scores (queries, depth) on dev.

    They are fitted with the scores of the model before training, which was not trained on the train queries. Where
    people asked few train queries and the others are made, they are fitted to dev with the given scores.
    """
    collection, dev = run.collection, run.candidates("dev")
    lists, before = _before_training(run)

    def start(kind: Kind) -> float:
        if collection.made and len(lists.queries) < FEWEST:
            return start_on_dev(collection, dev, scores, kind)
        return fit(collection, lists, before, kind)

    def weights(kind: Kind) -> Weights:
        return try_weights(collection, dev, run.metric, scores, start(kind), kind)

    return run.on_main(lambda: {kind: weights(kind) for kind in kinds})


def _before_training(run: Run) -> tuple[Candidates, np.ndarray]:
    """Return candidates of train queries with the scores of the model before training, with its head fitted.

    Queries made from documents repeat their words more often than real ones, so they would favour the first stage.
    """
    train, path = run.reranked("train"), run.folder / run.last_training / FITTED
    real = [index for index, query in enumerate(train.queries.tolist()) if query not in run.collection.made]
    train = train.select(np.array(real, dtype=np.int64))
    if not real:
        return train, np.empty(train.documents.shape, dtype=np.float32)
    logits = run.on_main(lambda: read_json(path)["logits"] if path.is_file() else None)
    if logits is not None:
        return fitted_lists(train, logits)
    lists = lists_to_fit(run.collection, train)
    return lists, score(run, str(run.start), lists)


def embed(
    run: Run, collection: Collection, queries: Sequence[int] | None = None, cut: bool = False
) -> tuple[tuple[Embeddings, Embeddings] | None, str]:
    """Return the embeddings of query rows (None: all judged ones) and of documents, and a message on new ones.

    With `cut` the documents are without the queries that were taken from them.
    """

    def choose(bi_encoder: BiEncoder) -> Precision:
        device = str(run.accelerator.device)
        return run.precision("retrieve", "encoding", bi_encoder.folder, lambda: bi_encoder.bf16_speedup(device))

    if run.recipe.bi_encoder is None:
        return None, ""  # before `run.accelerator` would start Accelerate
    cache = run.folder.parent / EMBEDDINGS
    return retriever.embed(run.recipe.retriever, collection, cache, run.accelerator, queries, choose, cut)
