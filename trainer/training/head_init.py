"""Fitting a fresh interaction head with a frozen encoder, so that fine-tuning starts from a good model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor, nn

from trainer.data.groups import Group
from trainer.model import Reranker, TokenizedCollection, inverse_document_frequency
from trainer.model.batching import Tokens
from trainer.model.interaction import LEXICAL, InteractionForSequenceClassification
from trainer.model.scoring import Row
from trainer.model.windows import Windowed, cut_document
from trainer.runtime.numbers import evenly
from trainer.runtime.run_folder import write_json
from trainer.training.checkpoints import FITTED
from trainer.training.losses import LOSSES

IDF_SAMPLE = 100_000  # documents whose tokens are counted for the idf
PROBE_RIDGE = 0.003  # ridge penalty on the weights of standardised features
MOST = 10.0  # standard deviations of the logits: the largest weight of the first stage's standardised scores
ROUNDS = 5  # most times that a mixture is fitted to the windows that the one before chose


@dataclass(frozen=True)
class Fit:
    """The lists that a head or mixture was fitted to, held-out scores of their documents, and the first stage's weight.

    `windows` has the index of the best window under the fitted head, for documents with several windows.

    The scores of each half of the lists are from a mixture fitted to the other half: a mixture overfits the lists that
    it was fitted to, and the first stage would seem to add less than it does. `first_stage_weight` is in logits per
    standard deviation of the first stage's scores; 0 if they add nothing.
    """

    lists: Sequence[Group]
    logits: np.ndarray  # (documents of all lists,) float32
    first_stage_weight: float
    windows: dict[Row, int] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Write fitted.json: the first stage's weight, and {query row: {document row: logit}}."""
        documents = iter(self.logits.tolist())
        logits = {group.query: {row: next(documents) for row in group.documents} for group in self.lists}
        write_json(folder / FITTED, {"first_stage_weight": self.first_stage_weight, "logits": logits})


def start_head(
    reranker: Reranker, tokenized: TokenizedCollection, lists: Sequence[Group], most: int, lexical: bool = True
) -> Fit:
    """Fit a fresh interaction head to at most `most` full candidate lists, and return the fit.

    Without `lexical` its lexical signals get the weight 0.
    Tokens are weighted by idf. The mixture of signals minimises the listwise loss over candidate lists as they will be
    reranked; fitted to mined groups, a biased sample of them, it is worse than without fitting (docs/results.md).
    Linear probing before fine-tuning: Kumar et al., ICLR 2022.
    """
    model = reranker.model
    documents, average_length = words_counted(reranker, tokenized)
    model.start_head(inverse_document_frequency(documents, len(model.token_weights)), average_length)
    lists = [lists[index] for index in evenly(len(lists), most)]
    rows = [(group.query, document) for group in lists for document in group.documents]
    windowed = reranker.cut(tokenized.pairs(rows))
    signals = reranker.signals(windowed.pairs, note="fit")
    if not lexical:
        signals[:, -LEXICAL:] = 0.0
    started = _mixture(model)
    weights = fit_windows(signals, windowed, lists, started)
    model.mix(torch.tensor(weights))
    scores = signals @ weights
    # Pointwise losses and sigmoids need scores around zero.
    model.shift(-float(windowed.best(scores).mean()))
    logits = held_out_logits(signals, windowed, lists, started)
    best = (windowed.best_index(scores) - windowed.starts).tolist()
    windows = {row: index for row, index, count in zip(rows, best, windowed.counts, strict=True) if count > 1}
    return Fit(lists, logits, first_stage_weight(logits, lists), windows)


def words_counted(reranker: Reranker, tokenized: TokenizedCollection) -> tuple[list[Tokens], float]:
    """Return the texts whose tokens are counted, and their mean length as they are read.

    They are documents, or their windows if documents are read in windows.
    """
    documents = tokenized.documents(IDF_SAMPLE)
    if reranker.passages is not None:
        room = reranker.max_length
        documents = [part for document in documents for part in cut_document(reranker.passages, document, room)]
    return documents, float(np.mean([min(len(document), reranker.max_length) for document in documents]))


def _mixture(model: InteractionForSequenceClassification) -> np.ndarray:
    """Return the weights (signals,) of an interaction head's signals, up to a factor."""
    parts = [model.mixture.flatten(), model.lexical] if model.config.lexical else [model.mixture.flatten()]
    return torch.cat(parts).detach().cpu().numpy()


def fit_windows(
    signals: np.ndarray, windowed: Windowed, lists: Sequence[Group], weights: np.ndarray, *, fixed: bool = False
) -> np.ndarray:
    """Return the mixture (signals,) that minimises the listwise loss of each document's best window.

    The loss is not convex in the mixture if it chooses the windows, so choice and fit alternate, from the mixture
    `weights` on. Without windows there is one fit. `signals` are (windows of all lists' documents, signals). With
    `fixed` the first one has the weight 1.
    """
    chosen = windowed.best_index(signals @ weights)
    for _ in range(ROUNDS):
        weights = probe(signals[chosen], lists, fixed=fixed)
        before, chosen = chosen, windowed.best_index(signals @ weights)
        if (chosen == before).all():
            break
    return weights


def held_out_logits(
    signals: np.ndarray, windowed: Windowed, lists: Sequence[Group], started: np.ndarray, *, fixed: bool = False
) -> np.ndarray:
    """Return logits (documents of all lists,) float32, each half of the lists by a mixture fitted to the other."""
    half = np.repeat(np.arange(len(lists)) % 2, [len(group.documents) for group in lists])
    half_of_windows = np.repeat(half, windowed.counts)
    logits = np.empty(len(half), dtype=np.float32)
    for number in (0, 1):
        others, theirs, their_windows = lists, windowed, signals
        if len(lists) > 1:
            others = lists[1 - number :: 2]
            theirs = Windowed([], windowed.counts[half != number])
            their_windows = signals[half_of_windows != number]
        weights = fit_windows(their_windows, theirs, others, started, fixed=fixed)
        ours = Windowed([], windowed.counts[half == number])
        logits[half == number] = ours.best(signals[half_of_windows == number] @ weights)
    return logits


def first_stage_weight(logits: np.ndarray, lists: Sequence[Group]) -> float:
    """Return the weight of the first stage's scores relative to logits (documents of all lists,), by listwise loss.

    It is at most `MOST` standard deviations of the logits, beside which the model would hardly count.
    """
    first = np.concatenate([np.array(group.first or np.zeros(len(group.documents))) for group in lists])
    model, first_stage = probe(np.stack([logits, first], axis=1).astype(np.float32), lists).tolist()
    return min(max(0.0, first_stage / model), MOST * float(logits.std())) if model > 0 else 0.0


def probe(features: np.ndarray, lists: Sequence[Group], *, fixed: bool = False) -> np.ndarray:
    """Return the weights (features,) float32 of a linear model that minimise the listwise loss.

    `features` are (documents of all lists, features); the grades are those of the lists. With `fixed` the first
    feature has the weight 1.
    """
    deviations = features.std(axis=0) + 1e-6
    lengths = [len(group.documents) for group in lists]
    split = torch.from_numpy(features / deviations).double().split(lengths)
    padded = nn.utils.rnn.pad_sequence(list(split), batch_first=True)
    labels, mask = padded_labels(lists)

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        parameters = torch.tensor(weights, requires_grad=True)
        ridge = PROBE_RIDGE * parameters.square().sum()
        total = LOSSES["listwise"](padded @ parameters, labels, mask, None).mean() + ridge
        (gradient,) = torch.autograd.grad(total, parameters)
        return total.item(), gradient.numpy()

    bounds = [(None, None)] * features.shape[1]
    if fixed:
        bounds[0] = (deviations[0], deviations[0])
    result = minimize(loss, np.zeros(features.shape[1]), jac=True, method="L-BFGS-B", bounds=bounds)
    return (result.x / deviations).astype(np.float32)


def padded_labels(lists: Sequence[Group]) -> tuple[Tensor, Tensor]:
    """Return the grades of the lists' documents (lists, longest) float64, and which of them are there, bool."""
    lengths = torch.tensor([len(group.documents) for group in lists])
    mask = torch.arange(int(lengths.max()))[None, :] < lengths[:, None]
    labels = torch.zeros(mask.shape, dtype=torch.float64)
    for row, group in enumerate(lists):
        labels[row, : len(group.grades)] = torch.tensor(group.grades, dtype=torch.float64)
    return labels, mask
