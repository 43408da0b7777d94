"""A fresh interaction head, fitted while the encoder rests, so that fine-tuning starts from a good model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from scipy.optimize import minimize
from torch import nn

from trainer.groups import Group
from trainer.losses import LOSSES
from trainer.reranker import Reranker, TokenizedCollection, rarity

RARITY_SAMPLE = 100_000  # documents whose tokens are counted
PROBE_LISTS = 300  # lists of candidates that a fresh head is fitted to; its dozen weights need no more
PROBE_RIDGE = 0.003  # on weights of features of unit spread


def start_head(reranker: Reranker, tokenized: TokenizedCollection, lists: Sequence[Group]) -> None:
    """Fit a fresh interaction head to whole lists of candidates; any other head stays as it is.

    Rare tokens of the corpus weigh more. The mixture of features minimises the listwise loss over whole lists of
    candidates as they will be reranked; over mined groups, a biased sample of them, it comes out worse than not
    fitted at all (docs/results.md). Probing before fine-tuning: Kumar et al., ICLR 2022.
    """
    if not reranker.is_interaction:
        return
    model = reranker.model
    model.start_head(rarity(tokenized.documents(RARITY_SAMPLE), len(model.token_weights)))
    chosen = np.linspace(0, len(lists) - 1, min(len(lists), PROBE_LISTS)).round().astype(int)
    lists = [lists[place] for place in chosen]
    pairs = tokenized.pairs([(group.query, document) for group in lists for document in group.documents])
    features = reranker.features(pairs, note="probe")
    mixture = probe(features.reshape(len(pairs), -1), lists).reshape(features.shape[1:])
    model.mix(torch.tensor(mixture))
    # Pointwise losses and sigmoids want scores around zero.
    model.shift(-float((features * mixture).sum(axis=(1, 2)).mean()))


def fit_head(
    reranker: Reranker, tokenized: TokenizedCollection, lists: Sequence[Group], accelerator: Accelerator
) -> None:
    """Fit a fresh interaction head on the main process and give it to all: fits on several devices differ in bits."""
    if accelerator.is_main_process:
        start_head(reranker, tokenized, lists)
    for name, weight in reranker.model.state_dict().items():
        if not name.startswith("encoder."):
            broadcast(weight)


def probe(features: np.ndarray, lists: Sequence[Group]) -> np.ndarray:
    """Weights (features,) of the linear model of (documents of all lists, features) with the least listwise loss."""
    spread = features.std(axis=0) + 1e-6
    lengths = [len(group.documents) for group in lists]
    split = torch.from_numpy(features / spread).double().split(lengths)
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

    found = minimize(loss, np.zeros(features.shape[1]), jac=True, method="L-BFGS-B")
    return (found.x / spread).astype(np.float32)
