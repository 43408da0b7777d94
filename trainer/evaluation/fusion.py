"""The first stage's weight in the fusion with a model: fitted on train, changed on dev only for a clear gain.

A weight chosen as the best of a grid on 80 dev queries is mostly noise: on runbooks dev chose 1 where the test optimum
is 0.3 (docs/results.md). So a fit with two parameters to up to 200 train queries gives the weight, and dev replaces it
by another one of the grid only if the mean gain is above its standard error. If all weights are equally good, that
happens by chance once in six times, while the best of six such weights is nearly always not the fitted one.

Queries made from documents fit no weight: they repeat the words of their document, which favours the first stage. Then
dev fits it. Two parameters on 50 or more queries fit little noise, but the verdict does not repeat this fit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from scipy.optimize import minimize

from trainer.data import Collection
from trainer.evaluation.gate import DevChoice, best_mean
from trainer.evaluation.two_stage import query_scores
from trainer.model import fusion
from trainer.model.fusion import LISTS, Kind, numbers_of_order
from trainer.model.scores import standardised
from trainer.retriever import NOTHING, Candidates
from trainer.runtime.numbers import evenly
from trainer.training.losses import LOSSES

GRID = (1.0, 0.5, 2.0, 0.25, 4.0, 0.0)  # multiples of the fitted weight, which comes first; ties go to the first one
UNFITTED = 0.3  # weight if too few queries were asked by people: the optimum on runbooks (docs/results.md)
FEWEST = 50  # real train queries, or else dev queries, that fit a weight where queries are made
MOST = 10.0  # largest weight: above it the model's scores hardly count
RIDGE = 0.003  # L2 penalty on the coefficients of standardised scores, as for a fresh head


@dataclass(frozen=True)
class Weights:
    """The weights tried on dev, the fitted one first, and each dev query's value (weights, queries) under them."""

    tried: tuple[float, ...]
    values: np.ndarray

    @property
    def chosen_index(self) -> int:
        """Index of the chosen weight."""
        return int(choose_weight(self.values, np.ones((1, self.values.shape[1])))[0])

    @property
    def chosen(self) -> float:
        """The chosen weight."""
        return self.tried[self.chosen_index]


def choose_weight(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the index of the chosen weight (resamples,) in each resample.

    `values` are (weights, queries), the fitted weight first; `counts` (resamples, queries) say how often each query is
    drawn. The chosen weight has the highest mean gain over the fitted one among those whose gain is above its standard
    error; if there is none, it is the fitted one.
    """
    gains = values - values[0]
    queries = counts.sum(axis=1, keepdims=True)
    mean = counts @ gains.T / queries
    variance = np.maximum(counts @ (gains**2).T / queries - mean**2, 0.0)
    error = np.sqrt(variance / np.maximum(queries - 1, 1))
    return np.argmax(np.where(mean > error, mean, 0.0), axis=1)


def fused_choice(alone: np.ndarray, fusions: Sequence[Weights]) -> DevChoice:
    """Return the choice in the fused mode with several seeds: of a model by its values alone, then of its weight.

    `alone` are the values (seeds, queries) of each seed's model, `fusions` its weights; those of the exported model
    come first.
    """
    ends = [0, *np.cumsum([len(one.tried) for one in fusions]).tolist()]

    def choose(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
        weights = np.stack([start + choose_weight(values[start:end], counts) for start, end in pairwise(ends)])
        return np.take_along_axis(weights, best_mean(alone, counts)[None], axis=0)[0]

    return DevChoice(np.concatenate([one.values for one in fusions]), fusions[0].chosen_index, choose)


def lists_to_fit(collection: Collection, candidates: Candidates) -> Candidates:
    """Return at most 200 of the train queries, spread evenly, that have a positive and another candidate."""
    usable = _usable(candidates, _grades(collection, candidates, "train"))
    return candidates.select(usable[evenly(len(usable), LISTS)])


def fitted_lists(candidates: Candidates, logits: Mapping[str, Mapping[str, float]]) -> tuple[Candidates, np.ndarray]:
    """Return the candidates of the queries that a head was fitted to, and the logits (queries, depth) from the fit."""
    lists = candidates.select(
        [index for index, query in enumerate(candidates.queries.tolist()) if str(query) in logits]
    )
    scores = np.full(lists.documents.shape, -np.inf, dtype=np.float32)
    for index, query in enumerate(lists.queries.tolist()):
        scores[index, : len(logits[str(query)])] = [logits[str(query)][str(row)] for row in lists.found(index)]
    return lists, scores


def _usable(candidates: Candidates, grades: np.ndarray) -> np.ndarray:
    """Return the indices of the queries with a positive and another candidate."""
    relevant, retrieved = (grades > 0).sum(axis=1), (candidates.documents != NOTHING).sum(axis=1)
    return np.flatnonzero((relevant > 0) & (relevant < retrieved))


def _grades(collection: Collection, candidates: Candidates, split: str) -> np.ndarray:
    """Return the grades (queries, depth) of a split's candidates, 0 for documents that are not relevant."""
    grades = np.zeros(candidates.documents.shape)
    for index, query in enumerate(candidates.queries.tolist()):
        judged = collection.qrels[split][query]
        positive = set(collection.positives(split, query))
        grades[index] = [judged[row] if row in positive else 0 for row in candidates.documents[index].tolist()]
    return grades


def start_on_dev(collection: Collection, candidates: Candidates, scores: np.ndarray, kind: Kind) -> float:
    """Return the weight if most train queries are made: fitted to dev, or the default if people asked too few there.

    `scores` (queries, depth) are the exported model's, of all dev candidates or of the first of each query.
    """
    candidates = candidates.top(scores.shape[1])
    usable = _usable(candidates, _grades(collection, candidates, "dev"))
    if collection.is_made("dev") or len(usable) < FEWEST:
        return UNFITTED
    return fit(collection, candidates.select(usable), scores[usable], kind, "dev")


def fit(collection: Collection, candidates: Candidates, scores: np.ndarray, kind: Kind, split: str = "train") -> float:
    """Return the weight with the least listwise loss on a split's candidates, between 0 and 10; 0 without candidates.

    `scores` (queries, depth) must come from a model that was not trained on these queries: a model
    orders those that it was trained on better than new ones, so the first stage would seem to add nothing.
    """
    if not len(candidates.queries):
        return 0.0
    present = candidates.documents != NOTHING
    inputs = (scores, first_stage_scores(candidates, kind))
    columns = np.stack([standardised(one, present) for one in inputs], axis=2)
    features, mask = torch.from_numpy(columns), torch.from_numpy(present)
    labels = torch.from_numpy(_grades(collection, candidates, split))

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        parameters = torch.tensor(weights, requires_grad=True)
        lists = LOSSES["listwise"](features @ parameters, labels, mask, None)
        total = lists.mean() + RIDGE * parameters.square().sum()
        (gradient,) = torch.autograd.grad(total, parameters)
        return total.item(), gradient.numpy()

    model, first = minimize(loss, np.zeros(2), jac=True, method="L-BFGS-B").x
    if first <= 0:
        return 0.0
    return float(round(min(first / model, MOST), 4)) if model > 0 else MOST


def first_stage_scores(candidates: Candidates, kind: Kind) -> np.ndarray:
    """Return the first stage's scores (queries, depth), or for `order` substitutes computed from the ranks alone."""
    if kind == "scores":
        return candidates.scores
    return np.broadcast_to(numbers_of_order(candidates.documents.shape[1]), candidates.documents.shape)


def try_weights(
    collection: Collection, candidates: Candidates, metric: str, scores: np.ndarray, fitted: float, kind: Kind
) -> Weights:
    """Measure multiples of the fitted weight on dev; `scores` (queries, depth) are those of the exported model.

    Made dev queries choose no weight, so only the fitted one is measured on them.
    """
    grid = GRID[:1] if collection.is_made("dev") else GRID
    tried = tuple(dict.fromkeys(round(fitted * times, 4) for times in grid))
    values = [
        list(query_scores(collection, "dev", candidates, metric, fused).values())
        for fused in (fuse_with_first_stage(candidates, scores, weight, kind) for weight in tried)
    ]
    return Weights(tried, np.array(values))


def fuse_with_first_stage(
    candidates: Candidates, scores: np.ndarray, weight: float, kind: Kind = "scores"
) -> np.ndarray:
    """Return a model's scores (queries, depth) of the first `depth` candidates fused with the first stage's."""
    candidates = candidates.top(scores.shape[1])
    return fusion.fuse(scores, first_stage_scores(candidates, kind), weight, candidates.documents != NOTHING)


def describe(weights: Mapping[Kind, Weights]) -> str:
    """Return the chosen weights as a message for the terminal."""
    chosen = [f"{weights[kind].chosen:g} for its {kind} (fitted {weights[kind].tried[0]:g})" for kind in weights]
    return f"weight of the first stage: {', '.join(chosen)}"
