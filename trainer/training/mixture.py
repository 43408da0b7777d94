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
from trainer.model.mixture import NAMES, Weights, rounded
from trainer.model.windows import Windowed
from trainer.runtime import console
from trainer.training.head_init import (
    Fit,
    evenly,
    first_stage_weight,
    fit_windows,
    held_out_logits,
    padded_labels,
    words_counted,
)
from trainer.training.losses import LOSSES

NOTHING, LOGIT, WORDS = [], [0], [1, 2, 3, 4]  # columns of the signals
FEWEST = 20  # lists, below which the held-out losses of two choices are not compared
ERRORS = 2.0  # standard errors of the mean by which a loss must be lower


def start_mixture(
    reranker: Reranker, tokenized: TokenizedCollection, lists: Sequence[Group], most: int, lexical: bool
) -> Fit:
    """Fit a mixture to at most `most` candidate lists and set it in the reranker; return the fit.

    Lexical signals are added if they lower the held-out loss clearly. If the logit itself does not, because it comes
    from a fresh classifier, they are fitted alone: their sum is the score before training. Without `lexical`, or
    without a gain, the score is the logit as it is. Only queries that people asked count: those made from documents
    repeat their words.
    """
    asked = [group for group in lists if group.query not in tokenized.collection.made]
    lexical = lexical and len(asked) >= FEWEST
    lists = evenly(asked if lexical else lists, min(most, LISTS))
    windowed = reranker.cut(tokenized.pairs([(group.query, row) for group in lists for row in group.documents]))
    empty = _without_weights(reranker, tokenized)
    words = empty.signals(windowed.pairs, reranker.pairs)
    signals = np.column_stack([reranker.logits(windowed.pairs, note="fit"), words])
    columns = _choose(signals, windowed, lists) if lexical else LOGIT
    if columns == LOGIT:
        logits = windowed.best(signals[:, 0])
        return Fit(lists, logits, first_stage_weight(logits, lists))
    weights = fit_windows(signals[:, columns], windowed, lists, _started(columns))
    # In logits: the score is the model's logit, whatever its scale, plus the signals.
    unit = float(weights[0]) if columns[0] == 0 else 1.0
    of_words = (weights[-len(WORDS) :] / unit).tolist()
    added = windowed.best(words @ np.array(of_words, dtype=np.float32))
    reranker.mixture = replace(empty, weights=Weights(*of_words, constant=-float(added.mean())))
    console.stage("train", f"lexical signals are added to the logit: they lower the loss on {len(lists)} train queries")
    logits = held_out_logits(signals[:, columns], windowed, lists, _started(columns)) / np.float32(unit)
    return Fit(lists, logits, first_stage_weight(logits, lists))


def _without_weights(reranker: Reranker, tokenized: TokenizedCollection) -> Mixture:
    """Return a mixture with the corpus's statistics and with weights of 0."""
    documents, average_length = words_counted(reranker, tokenized)
    vocabulary = max(reranker.tokenizer.get_vocab().values()) + 1
    idf = rounded(inverse_document_frequency(documents, vocabulary))
    return Mixture(Weights(*[0.0] * len(NAMES)), idf, average_length)


def _choose(signals: np.ndarray, windowed: Windowed, lists: Sequence[Group]) -> list[int]:
    """Return the columns of the signals whose mixture is clearly the best on held-out lists."""
    losses = {tuple(columns): _held_out_losses(signals[:, columns], windowed, lists) for columns in (NOTHING, LOGIT)}
    own = LOGIT if _is_lower(losses[tuple(LOGIT)], losses[tuple(NOTHING)]) else NOTHING
    both = _held_out_losses(signals[:, own + WORDS], windowed, lists)
    if not _is_lower(both, losses[tuple(own)]):
        return LOGIT
    first = fit_windows(signals[:, own + WORDS], windowed, lists, _started(own + WORDS))[0]
    return LOGIT if own and first <= 0 else own + WORDS


def _is_lower(losses: np.ndarray, others: np.ndarray) -> bool:
    """Return whether losses (lists,) are lower than others by clearly more than chance."""
    difference = others - losses
    return bool(difference.mean() > ERRORS * difference.std(ddof=1) / np.sqrt(len(difference)))


def _held_out_losses(signals: np.ndarray, windowed: Windowed, lists: Sequence[Group]) -> np.ndarray:
    """Return the listwise loss (lists,) of each list under a mixture that was fitted to the other half of the lists."""
    labels, mask = padded_labels(lists)
    scores = torch.zeros(labels.shape, dtype=torch.float64)
    if signals.shape[1]:
        logits = held_out_logits(signals, windowed, lists, _started(range(signals.shape[1])))
        scores[mask] = torch.from_numpy(logits).double()
    return LOSSES["listwise"](scores, labels, mask, None).numpy()


def _started(columns: Sequence[int]) -> np.ndarray:
    """Return the mixture that chooses the first windows: the first column, the logit or BM25."""
    return np.eye(len(columns))[0]
