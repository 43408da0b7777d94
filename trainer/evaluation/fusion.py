"""The first stage's weight beside a model: fitted on train lists, moved on dev only where that is clearly better.

A weight chosen as the best of a grid on 80 dev queries is mostly noise: on runbooks dev chose 1 where the test optimum
is 0.3 (docs/results.md). So the weight comes from a fit with two parameters to up to 200 train lists, and dev may move
it to another one of the grid only where the mean gain is above its standard error: with equal weights that happens by
chance once in six, while the best of six equal weights is nearly always another than the fitted one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize

from trainer.data import Collection
from trainer.evaluation.two_stage import query_scores
from trainer.model import fusion
from trainer.model.fusion import Kind, numbers_of_order
from trainer.model.scores import standardised
from trainer.retriever import NOTHING, Candidates
from trainer.training.losses import LOSSES

LISTS = 200  # that the weight is fitted to, at most: two parameters need no more
GRID = (1.0, 0.5, 2.0, 0.25, 4.0, 0.0)  # times the fitted weight, which comes first; of equal ones the first is taken
MOST = 10.0  # a weight above which the model's scores hardly count
RIDGE = 0.003  # on the coefficients of standardised scores, as for a fresh head


@dataclass(frozen=True)
class Weights:
    """The weights tried on dev, the fitted one first, and each query's value (weights, queries) under each."""

    tried: tuple[float, ...]
    values: np.ndarray

    @property
    def place(self) -> int:
        """Which of them is chosen."""
        return int(choose_weight(self.values, np.ones((1, self.values.shape[1])))[0])

    @property
    def chosen(self) -> float:
        """The weight that is chosen."""
        return self.tried[self.place]


def choose_weight(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the place of the weight (resamples,) that is chosen where each query counts so often.

    `values` are (weights, queries), the fitted weight first; `counts` (resamples, queries). Taken is the weight with
    the highest mean gain over the fitted one among those whose gain is above its standard error, else the fitted one.
    """
    gains = values - values[0]
    queries = counts.sum(axis=1, keepdims=True)
    mean = counts @ gains.T / queries
    variance = np.maximum(counts @ (gains**2).T / queries - mean**2, 0.0)
    error = np.sqrt(variance / np.maximum(queries - 1, 1))
    return np.argmax(np.where(mean > error, mean, 0.0), axis=1)


def lists_to_fit(collection: Collection, candidates: Candidates) -> Candidates:
    """Return at most 200 of the train queries, spread evenly, that have a positive and another candidate."""
    grades = _grades(collection, candidates)
    relevant, found = (grades > 0).sum(axis=1), (candidates.documents != NOTHING).sum(axis=1)
    usable = np.flatnonzero((relevant > 0) & (relevant < found))
    return candidates.select(usable[np.linspace(0, len(usable) - 1, min(len(usable), LISTS)).round().astype(int)])


def fitted_lists(candidates: Candidates, logits: Mapping[str, Mapping[str, float]]) -> tuple[Candidates, np.ndarray]:
    """Return the queries that a head was fitted to, and its logits (queries, depth), as the fit left them."""
    lists = candidates.select(
        [place for place, query in enumerate(candidates.queries.tolist()) if str(query) in logits]
    )
    scores = np.full(lists.documents.shape, -np.inf, dtype=np.float32)
    for place, query in enumerate(lists.queries.tolist()):
        scores[place, : len(logits[str(query)])] = [logits[str(query)][str(row)] for row in lists.found(place)]
    return lists, scores


def _grades(collection: Collection, candidates: Candidates) -> np.ndarray:
    """Return the grades (queries, depth) of train candidates, 0 for all that is not relevant."""
    grades = np.zeros(candidates.documents.shape)
    for place, query in enumerate(candidates.queries.tolist()):
        judged = collection.qrels["train"][query]
        positive = set(collection.positives("train", query))
        grades[place] = [judged[row] if row in positive else 0 for row in candidates.documents[place].tolist()]
    return grades


def fit(collection: Collection, candidates: Candidates, scores: np.ndarray, kind: Kind) -> float:
    """Return the weight with the least listwise loss on train lists, between 0 and 10; 0 where there are no lists.

    `scores` (queries, depth) are of a model that was not trained on these lists: one that was orders them better than
    any others, so the first stage would seem to add nothing to it.
    """
    if not len(candidates.queries):
        return 0.0
    found = candidates.documents != NOTHING
    columns = np.stack([standardised(one, found) for one in (scores, numbers(candidates, kind))], axis=2)
    features, mask = torch.from_numpy(columns), torch.from_numpy(found)
    labels = torch.from_numpy(_grades(collection, candidates))

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


def numbers(candidates: Candidates, kind: Kind) -> np.ndarray:
    """Return the first stage's numbers (queries, depth): its scores, or what stands for them by the order alone."""
    if kind == "scores":
        return candidates.scores
    return np.broadcast_to(numbers_of_order(candidates.documents.shape[1]), candidates.documents.shape)


def try_weights(
    collection: Collection, candidates: Candidates, metric: str, scores: np.ndarray, fitted: float, kind: Kind
) -> Weights:
    """Measure the weights around the fitted one on dev; `scores` (queries, depth) are of the model that leaves."""
    tried = tuple(dict.fromkeys(round(fitted * times, 4) for times in GRID))
    values = [
        list(query_scores(collection, "dev", candidates, metric, fuse(candidates, scores, weight, kind)).values())
        for weight in tried
    ]
    return Weights(tried, np.array(values))


def fuse(candidates: Candidates, scores: np.ndarray, weight: float, kind: Kind = "scores") -> np.ndarray:
    """Return a model's scores (queries, depth) of the first `depth` candidates fused with the first stage's."""
    candidates = candidates.top(scores.shape[1])
    return fusion.fuse(scores, numbers(candidates, kind), weight, candidates.documents != NOTHING)


def describe(weights: Mapping[Kind, Weights]) -> str:
    """Return the chosen weights in words."""
    said = [f"{weights[kind].chosen:g} for its {kind} (fitted {weights[kind].tried[0]:g})" for kind in weights]
    return f"weight of the first stage: {', '.join(said)}"
