"""Fitting a fresh interaction head with a frozen encoder, so that fine-tuning starts from a good model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from scipy.optimize import minimize
from torch import nn

from trainer.data.groups import Group
from trainer.model import Reranker, TokenizedCollection, inverse_document_frequency
from trainer.runtime.launch import on_main
from trainer.runtime.run_folder import write_json
from trainer.training.checkpoints import FITTED
from trainer.training.losses import LOSSES

IDF_SAMPLE = 100_000  # documents whose tokens are counted for the idf
PROBE_RIDGE = 0.003  # ridge penalty on the weights of standardised features


@dataclass(frozen=True)
class Fit:
    """The candidate lists of a fitted head, held-out logits of their documents, and the first stage's weight.

    The logits of each half of the lists are from a mixture fitted to the other half: a mixture overfits the lists that
    it was fitted to, and the first stage would seem to add less than it does. `first_stage_weight` is in logits per
    standard deviation of the first stage's scores; 0 if they add nothing.
    """

    lists: Sequence[Group]
    logits: np.ndarray  # (documents of all lists,) float32
    first_stage_weight: float

    def save(self, folder: Path) -> None:
        """Write fitted.json: the first stage's weight, and {query row: {document row: logit}}."""
        documents = iter(self.logits.tolist())
        logits = {group.query: {row: next(documents) for row in group.documents} for group in self.lists}
        write_json(folder / FITTED, {"first_stage_weight": self.first_stage_weight, "logits": logits})


def start_head(reranker: Reranker, tokenized: TokenizedCollection, lists: Sequence[Group], most: int) -> Fit | None:
    """Fit a fresh interaction head to at most `most` full candidate lists, and return the fit; None for other heads.

    Tokens are weighted by idf. The mixture of signals minimises the listwise loss over candidate lists as they will be
    reranked; fitted to mined groups, a biased sample of them, it is worse than without fitting (docs/results.md).
    Linear probing before fine-tuning: Kumar et al., ICLR 2022.
    """
    if not reranker.is_interaction:
        return None
    model = reranker.model
    documents = tokenized.documents(IDF_SAMPLE)
    average_length = float(np.mean([min(len(document), reranker.max_length) for document in documents]))
    model.start_head(inverse_document_frequency(documents, len(model.token_weights)), average_length)
    chosen = np.linspace(0, len(lists) - 1, min(len(lists), most)).round().astype(int)
    lists = [lists[index] for index in chosen]
    pairs = tokenized.pairs([(group.query, document) for group in lists for document in group.documents])
    signals = reranker.signals(pairs, note="fit")
    weights = probe(signals, lists)
    model.mix(torch.tensor(weights))
    # Pointwise losses and sigmoids need scores around zero.
    model.shift(-float((signals @ weights).mean()))
    logits = held_out_logits(signals, lists)
    return Fit(lists, logits, first_stage_weight(logits, lists))


def held_out_logits(signals: np.ndarray, lists: Sequence[Group]) -> np.ndarray:
    """Return logits (documents of all lists,) float32, each half of the lists by a mixture fitted to the other."""
    half = np.repeat(np.arange(len(lists)) % 2, [len(group.documents) for group in lists])
    logits = np.empty(len(signals), dtype=np.float32)
    for number in (0, 1):
        others = lists[1 - number :: 2] or lists
        weights = probe(signals[half != number] if len(lists) > 1 else signals, others)
        logits[half == number] = signals[half == number] @ weights
    return logits


def first_stage_weight(logits: np.ndarray, lists: Sequence[Group]) -> float:
    """Return the weight of the first stage's scores relative to logits (documents of all lists,), by listwise loss."""
    first = np.concatenate([np.array(group.first or np.zeros(len(group.documents))) for group in lists])
    model, first_stage = probe(np.stack([logits, first], axis=1).astype(np.float32), lists).tolist()
    return max(0.0, first_stage / model) if model > 0 else 0.0


def fit_head(
    reranker: Reranker,
    tokenized: TokenizedCollection,
    lists: Sequence[Group],
    most: int,
    accelerator: Accelerator,
    folder: Path,
) -> float:
    """Fit a fresh interaction head on the main process, broadcast it, and return the first stage's weight.

    It is fitted once, because fits on several devices differ in the last bits, and saved in the folder as fitted.json.
    """

    def fit() -> float:
        fitted = start_head(reranker, tokenized, lists, most)
        if fitted is None:
            return 0.0
        fitted.save(folder)
        return fitted.first_stage_weight

    weight = on_main(accelerator, fit)
    for name, tensor in reranker.model.state_dict().items():
        if not name.startswith("encoder."):
            broadcast(tensor)
    return weight


def probe(features: np.ndarray, lists: Sequence[Group]) -> np.ndarray:
    """Return the weights (features,) float32 of a linear model that minimise the listwise loss.

    `features` are (documents of all lists, features); the grades are those of the lists.
    """
    deviations = features.std(axis=0) + 1e-6
    lengths = [len(group.documents) for group in lists]
    split = torch.from_numpy(features / deviations).double().split(lengths)
    grades = [torch.tensor(group.grades, dtype=torch.float64) for group in lists]
    padded, labels = (nn.utils.rnn.pad_sequence(list(rows), batch_first=True) for rows in (split, grades))
    labels = nn.functional.pad(labels, (0, padded.shape[1] - labels.shape[1]))
    mask = torch.arange(padded.shape[1])[None, :] < torch.tensor(lengths)[:, None]

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        parameters = torch.tensor(weights, requires_grad=True)
        ridge = PROBE_RIDGE * parameters.square().sum()
        total = LOSSES["listwise"](padded @ parameters, labels, mask, None).mean() + ridge
        (gradient,) = torch.autograd.grad(total, parameters)
        return total.item(), gradient.numpy()

    result = minimize(loss, np.zeros(features.shape[1]), jac=True, method="L-BFGS-B")
    return (result.x / deviations).astype(np.float32)
