"""Scores by endpoints for the stages of a run; a teacher's are compared with the human labels before they are used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from trainer.context.run import Run
from trainer.data import Collection
from trainer.endpoints import PairScorer, Service, estimate_pairs, store_of
from trainer.errors import RunError
from trainer.evaluation.agreement import FEWEST, Agreement, Sample, agreement_of, refusal, sample_labels
from trainer.model_files import references, tokenizer_file
from trainer.runtime import console

Rows = Sequence[tuple[int, int]]  # a query and a document


def pair_scorer(run: Run, key: str, stage: str) -> PairScorer:
    """Return the endpoint that a key of the recipe names, for the main process alone."""
    endpoint, section = run.recipe.scoring_endpoints[key], run.recipe.endpoints
    count = tokenizer_file.token_counter(references.locate(run.recipe.reranker.model, weights=False))

    def show(missing: Sequence[tuple[str, str]]) -> None:
        queries = len({query for query, _ in missing})
        estimate = estimate_pairs(endpoint, section, len(missing), queries, missing, count)
        console.stage(stage, estimate.sentence(endpoint))

    return PairScorer(Service(endpoint, key), store_of(run.folder.parent, endpoint.kind), section, stage, show)


def score_rows(scorer: PairScorer, collection: Collection, rows: Rows) -> np.ndarray:
    """Return an endpoint's scores (rows,) float32 of query and document rows, NaN for those without one."""
    queries = _texts(collection.query_texts, {query for query, _ in rows})
    documents = _texts(collection.passages, {document for _, document in rows})
    return scorer([(queries[query], documents[document]) for query, document in rows])


def _texts(read: Any, rows: set[int]) -> dict[int, str]:
    order = sorted(rows)
    return dict(zip(order, read(order), strict=True))


class EndpointTeacher:
    """An endpoint as a function: `teacher(rows)` returns the scores of (query row, document row) pairs.

    Pairs for which it gives no score have NaN. The main process sends the requests; all of them call the function.
    """

    def __init__(self, run: Run, key: str, collection: Collection, stage: str) -> None:
        self._run = run
        self._collection = collection
        self._key = key
        self._scorer = pair_scorer(run, key, stage) if run.is_main else None

    def __call__(self, rows: Rows) -> np.ndarray:
        """Return the scores (rows,) float32; raise RunError if a limit of the recipe is reached before the last one."""
        return self._run.on_main(lambda: self._score(rows))

    def _score(self, rows: Rows) -> np.ndarray:
        assert self._scorer is not None
        scores = score_rows(self._scorer, self._collection, rows)
        if self._scorer.stopped:
            done = int((~np.isnan(scores)).sum())
            raise RunError(
                f"{self._key}: a limit is reached (endpoints.max_requests or endpoints.max_tokens): {done} of "
                f"{len(rows)} pairs are scored and kept; the same command goes on from there, or raise the limit"
            )
        return scores

    def checked(self) -> dict[str, Any]:
        """Compare a sample of the scores with the human labels, and return what `done.json` keeps of it.

        Raise RunError if they agree less than the recipe demands.
        """
        return self._run.on_main(self._checked)

    def _checked(self) -> dict[str, Any]:
        assert self._scorer is not None
        sample = self._sample()
        agreement = None
        if sample is not None:
            scores, seed = self._score(sample.pairs), self._run.recipe.seed
            agreement = agreement_of(sample, scores, self._scorer.is_chat, seed)
        name, stage = self._scorer.service.name, self._scorer.stage
        if agreement is None:
            console.warn(
                stage, f"{name}: fewer than {FEWEST} queries with human labels, so its agreement is not measured"
            )
            return {}
        self._refuse(agreement)
        console.stage(stage, f"{name}: {agreement.sentence}")
        return {"agreement": {"endpoint": self._scorer.service.endpoint.identity} | agreement.as_json()}

    def _sample(self) -> Sample | None:
        """Return labelled pairs of train, or of dev if train has too few queries of people."""
        run, count = self._run, self._run.recipe.endpoints.agreement_queries
        for split in ("train", "dev"):
            sample = sample_labels(run.collection, split, count, run.recipe.seed, run.candidates(split))
            if sample is not None:
                return sample
        return None

    def _refuse(self, agreement: Agreement) -> None:
        assert self._scorer is not None
        section = self._run.recipe.endpoints
        if reason := refusal(agreement, section.least_kappa if self._scorer.is_chat else section.least_auc):
            raise RunError(f"{self._key}: {self._scorer.service.name} is refused as a teacher: {reason}")
