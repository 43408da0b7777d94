"""Losses: pure functions of scores, labels and teacher scores, one number a group.

All take (groups x documents) float matrices and a boolean `mask` that is True for real documents; padding may hold
anything, nan included. Scores and teacher scores are raw logits, labels are grades divided by the highest grade. They
return one loss for each group, so that the caller can divide by the number of groups of the whole step, whatever the
number of devices and passes it was spread over. Each query counts alike, however many documents it has; where
sentence-transformers averages over all pairs or documents of a batch, the two agree on a batch of one query.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

Loss = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


def listwise(scores: Tensor, labels: Tensor, mask: Tensor, teacher: Tensor | None) -> Tensor:
    """Softmax cross-entropy over the group, against the labels' share of their sum.

    With one positive this is LCE (Gao, Dai and Callan, ECIR 2021); with labels that are already a distribution it is
    ListNet (Cao et al., ICML 2007), which sentence-transformers feeds with softmax(labels).
    """
    labels = _blank(labels, mask)
    targets = labels / labels.sum(dim=1, keepdim=True)
    return -(targets * _log_shares(scores, mask)).sum(dim=1)


def pointwise(scores: Tensor, labels: Tensor, mask: Tensor, teacher: Tensor | None) -> Tensor:
    """Binary cross-entropy of each pair with its label in 0..1 (grades are soft labels), averaged over the group.

    sentence-transformers' BinaryCrossEntropyLoss, which averages over all pairs of a batch.
    """
    each = functional.binary_cross_entropy_with_logits(_blank(scores, mask), _blank(labels, mask), reduction="none")
    return _mean(each, mask)


def lambdarank(scores: Tensor, labels: Tensor, mask: Tensor, teacher: Tensor | None) -> Tensor:
    """Logistic loss of score differences, weighted by the change in nDCG (Burges, Ragno and Le, NIPS 2006).

    As a loss with that gradient: Wang et al., CIKM 2018. sentence-transformers' LambdaLoss with LambdaRankScheme. The
    gain is 2^label - 1 as there: with labels in 0..1 it is nearly linear in the grade.
    """
    weights = _lambdarank_weights(_ranks(scores, mask))
    return _in_order(scores, labels, mask, weights * _gain_differences(labels, mask))


def mse(scores: Tensor, labels: Tensor, mask: Tensor, teacher: Tensor | None) -> Tensor:
    """Squared error of the scores to the teacher's logits, averaged over the group (Ba and Caruana, NIPS 2014).

    sentence-transformers' MSELoss, which averages over all pairs of a batch.
    """
    assert teacher is not None
    return _mean((_blank(scores, mask) - _blank(teacher, mask)).square(), mask)


def margin_mse(scores: Tensor, labels: Tensor, mask: Tensor, teacher: Tensor | None) -> Tensor:
    """Squared error of score differences to the teacher's (Hofstätter et al., arXiv:2010.02666, 2020).

    Differences are each document minus every one of lower label, so with one positive it minus every negative:
    sentence-transformers' MarginMSELoss with several negatives.
    """
    assert teacher is not None
    errors = _differences(_blank(scores, mask) - _blank(teacher, mask)).square()
    return _mean(errors.flatten(1), _better(labels, mask).flatten(1))


def kl(scores: Tensor, labels: Tensor, mask: Tensor, teacher: Tensor | None) -> Tensor:
    """KL(teacher || student) of the softmaxes over the group (Hinton, Vinyals and Dean, NIPS 2014 workshop).

    The group's documents stand for classes; temperature 1. sentence-transformers has it for bi-encoders only, as
    DistillKLDivLoss.
    """
    assert teacher is not None
    wanted = _log_shares(teacher, mask)
    return (wanted.exp() * (wanted - _log_shares(scores, mask))).sum(dim=1)


LOSSES: dict[str, Loss] = {
    "listwise": listwise,
    "pointwise": pointwise,
    "lambdarank": lambdarank,
    "mse": mse,
    "margin_mse": margin_mse,
    "kl": kl,
}

DISTILLATION: frozenset[str] = frozenset({"mse", "margin_mse", "kl"})
"""Losses that need teacher scores."""


def _blank(values: Tensor, mask: Tensor) -> Tensor:
    """Zero at the padding, before any arithmetic: 0 * nan is nan, in gradients too."""
    return values.masked_fill(~mask, 0.0)


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of each row where the mask is True; zero where it nowhere is (no pair of unequal labels)."""
    return _blank(values, mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)


def _differences(values: Tensor) -> Tensor:
    """(groups, documents, documents): each document's value minus each other's."""
    return values[:, :, None] - values[:, None, :]


def _better(labels: Tensor, mask: Tensor) -> Tensor:
    """(groups, documents, documents): whether the first of two real documents has the higher label."""
    return (_differences(labels) > 0) & mask[:, :, None] & mask[:, None, :]


def _log_shares(scores: Tensor, mask: Tensor) -> Tensor:
    """Log-softmax over the real documents; zero at the padding."""
    return _blank(functional.log_softmax(scores.masked_fill(~mask, float("-inf")), dim=1), mask)


def _ranks(values: Tensor, mask: Tensor) -> Tensor:
    """Rank of each document (from 1.0) by falling values; equals keep the group's order, padding comes last."""
    order = values.masked_fill(~mask, float("-inf")).argsort(dim=1, descending=True, stable=True)
    return order.argsort(dim=1) + 1.0


def _in_order(scores: Tensor, labels: Tensor, mask: Tensor, weights: Tensor | float) -> Tensor:
    """Logistic loss of the score difference in bits, times its weight, averaged over all pairs of unequal labels."""
    bits = -functional.logsigmoid(_differences(_blank(scores, mask))) / math.log(2)
    return _mean((weights * bits).flatten(1), _better(labels, mask).flatten(1))


def _lambdarank_weights(ranks: Tensor) -> Tensor:
    """How far apart the discounts of two documents are where they stand now."""
    return _differences(1 / torch.log2(1 + ranks)).abs()


def _gain_differences(labels: Tensor, mask: Tensor) -> Tensor:
    """How far apart the gains of two documents are, as shares of the best DCG of the group."""
    gains = torch.exp2(_blank(labels, mask)) - 1
    places = torch.arange(1, gains.shape[1] + 1, device=gains.device)
    best = (gains.sort(dim=1, descending=True).values / torch.log2(1 + places)).sum(dim=1)
    return _differences(gains).abs() / best.clamp(min=1e-10)[:, None, None]
