"""Losses: pure functions of scores and labels, one number a group.

All take (groups x documents) float matrices and a boolean `mask` that is True for real documents, and return one
loss for each group, so that the caller can divide by the number of groups of the whole step, whatever the number
of devices and passes it was spread over. Each query counts alike, however many documents it has.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def listwise(scores: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """Softmax cross-entropy over the group, against the labels' share of their sum.

    With one positive this is LCE (Gao, Dai and Callan, ECIR 2021); with labels that are already a distribution it is
    ListNet (Cao et al., ICML 2007), which sentence-transformers feeds with softmax(labels).
    """
    log_shares = functional.log_softmax(scores.masked_fill(~mask, float("-inf")), dim=1)
    labels = labels.masked_fill(~mask, 0.0)
    targets = labels / labels.sum(dim=1, keepdim=True)
    return -(targets * log_shares.masked_fill(~mask, 0.0)).sum(dim=1)


def pointwise(scores: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """Binary cross-entropy of each pair with its label in 0..1 (grades are soft labels), averaged over the group."""
    each = functional.binary_cross_entropy_with_logits(scores, labels, reduction="none")
    return torch.where(mask, each, 0.0).sum(dim=1) / mask.sum(dim=1)


LOSSES: dict[str, Loss] = {"listwise": listwise, "pointwise": pointwise}
