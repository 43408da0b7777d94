"""Fitting the mixture of a standard checkpoint: lexical signals beside its logit, where train queries show a gain.

The weights minimise the listwise loss over candidate lists as they will be reranked, with the model as it is. Training
then learns through their sum, so that the model learns what exact matches of words do not say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from trainer.data.groups import Group
from trainer.model import Mixture, Reranker, TokenizedCollection, inverse_document_frequency
from trainer.model.fusion import LISTS
from trainer.model.mixture import NAMES, Weights, largest_id, rounded
from trainer.model.windows import Windowed
from trainer.runtime import console
from trainer.runtime.numbers import evenly
from trainer.training.head_init import (
    Fit,
    first_stage_weight,
    fit_windows,
    held_out_logits,
    padded_labels,
    words_counted,
)
from trainer.training.losses import LOSSES

FEWEST = 20  # lists, below which held-out losses are not compared
ERRORS = 2.0  # standard errors of the mean by which a loss must be lower
LEAST_SHARE = 0.1  # of the signals' spread: a logit of less than that would make them saturate the loss


def start_mixture(
    reranker: Reranker, tokenized: TokenizedCollection, lists: Sequence[Group], most: int, lexical: bool
) -> Fit:
    """Fit a mixture to at most `most` candidate lists and set it in the reranker; return the fit.

    Lexical signals are added if they lower the held-out loss clearly. Without `lexical`, without a gain, or with a
    mixture that the base brought, the score stays as it is. Only queries that people asked count if there are enough,
    because those made from documents repeat their words.
    """
    asked = [group for group in lists if group.query not in tokenized.collection.made]
    lists = asked if len(asked) >= FEWEST else lists
    lists = [lists[index] for index in evenly(len(lists), min(most, LISTS))]
    windowed = reranker.cut(tokenized.pairs([(group.query, row) for group in lists for row in group.documents]))
    scores = reranker.score_windows(windowed.pairs, note="fit")
    ranks = len(lists) >= FEWEST and _ranks(scores, windowed, lists)
    if lexical and reranker.mixture is None and len(asked) >= FEWEST:
        empty = _without_weights(reranker, tokenized)
        signals = np.column_stack([scores, empty.signals(windowed.pairs, reranker.pairs)])
        if (found := _weights(signals, windowed, lists, ranks)) is not None:
            weights, held_out = found
            added = windowed.best(signals[:, 1:] @ weights)
            reranker.mixture = replace(empty, weights=Weights(*weights.tolist(), constant=-float(added.mean())))
            console.stage("train", f"lexical signals are added to the logit: {len(lists)} train queries show a gain")
            return Fit(lists, held_out, first_stage_weight(held_out, lists))
        console.stage("train", f"lexical signals are left out: {len(lists)} train queries show no clear gain by them")
    logits = windowed.best(scores)
    # To a logit that does not rank, any weight of the first stage is chance.
    return Fit(lists, logits, first_stage_weight(logits, lists) if ranks else 0.0)


def _without_weights(reranker: Reranker, tokenized: TokenizedCollection) -> Mixture:
    """Return a mixture with the corpus's statistics and with weights of 0."""
    documents, average_length = words_counted(reranker, tokenized)
    idf = rounded(inverse_document_frequency(documents, largest_id(reranker.tokenizer) + 1))
    return Mixture(Weights(*[0.0] * len(NAMES)), idf, average_length)


def _ranks(logits: np.ndarray, windowed: Windowed, lists: Sequence[Group]) -> bool:
    """Return whether the order by the logits (windows,) is clearly better than none."""
    held_out = held_out_logits(logits[:, None], windowed, lists, np.ones(1))
    return _is_lower(_losses(held_out, lists), _losses(np.zeros(len(held_out)), lists))


def _weights(
    signals: np.ndarray, windowed: Windowed, lists: Sequence[Group], ranks: bool
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the weights of the lexical signals in logits, and the held-out scores (documents,); None without a gain.

    The first of the signals (windows, 5) is the logit. If it ranks, its weight is fitted too and divides the others,
    because the score is the logit at its own scale. If it does not, its weight is 1 in the fit already.
    """
    started = np.eye(signals.shape[1])[0]
    raw = windowed.best(signals[:, 0])
    before = held_out_logits(signals[:, :1], windowed, lists, np.ones(1)) if ranks else np.zeros(len(raw))
    for scaled in (True, False) if ranks else (False,):
        held_out = held_out_logits(signals, windowed, lists, started, fixed=not scaled)
        if not _is_lower(_losses(held_out, lists), _losses(before, lists)):
            continue
        weights = fit_windows(signals, windowed, lists, started, fixed=not scaled)
        spread = (signals[:, 1:] @ weights[1:]).std()
        if scaled and weights[0] * signals[:, 0].std() < LEAST_SHARE * spread:
            continue
        return weights[1:] / weights[0], held_out / weights[0]
    return None


def _is_lower(losses: np.ndarray, others: np.ndarray) -> bool:
    """Return whether losses (lists,) are lower than others by clearly more than chance."""
    difference = others - losses
    return bool(difference.mean() > ERRORS * difference.std(ddof=1) / np.sqrt(len(difference)))


def _losses(logits: np.ndarray, lists: Sequence[Group]) -> np.ndarray:
    """Return the listwise loss (lists,) of logits (documents of all lists,)."""
    labels, mask = padded_labels(lists)
    scores = torch.zeros(labels.shape, dtype=torch.float64)
    scores[mask] = torch.from_numpy(logits).double()
    return LOSSES["listwise"](scores, labels, mask, None).numpy()
