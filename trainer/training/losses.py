"""Losses: pure functions of scores, labels and teacher scores.

All take float matrices (groups, documents) and a boolean `mask` that is True for real documents; padding may have any
value, including NaN. Scores and teacher scores are logits, labels are grades divided by the largest grade. They return
one loss per group (groups,), so that the caller can divide by the number of groups of the full step, for any number of
devices and passes. Each query has the same weight, for any number of documents; where sentence-transformers averages
over all pairs or documents of a batch, the two agree on a batch of one query.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

Loss = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


def listwise(scores: Tensor, labels: Tensor, mask: Tensor, teacher: Tensor | None) -> Tensor:
    """Return the softmax cross-entropy over the group, against the labels divided by their sum.

    With one positive this is LCE (Gao, Dai and Callan, ECIR 2021); with labels that are already a distribution it is
    ListNet (Cao et al., ICML 2007), to which sentence-transformers passes softmax(labels).
    """
    labels = _blank(labels, mask)
    targets = labels / labels.sum(dim=1, keepdim=True)
    return -(targets * _log_softmax(scores, mask)).sum(dim=1)


def pointwise(scores: Tensor, labels: Tensor, mask: Tensor, teacher: Tensor | None) -> Tensor:
    """Return the binary cross-entropy with labels in 0..1 (grades are soft labels), averaged over the group.

    As sentence-transformers' BinaryCrossEntropyLoss, which averages over all pairs of a batch.
    """
    each = functional.binary_cross_entropy_with_logits(_blank(scores, mask), _blank(labels, mask), reduction="none")
    return _masked_mean(each, mask)


def lambdarank(scores: Tensor, labels: Tensor, mask: Tensor, teacher: Tensor | None) -> Tensor:
    """Return the logistic loss of score differences, weighted by the change of nDCG when the two are swapped.

    LambdaRank (Burges, Ragno and Le, NIPS 2006), as a loss with that gradient (Wang et al., CIKM 2018), which is
    sentence-transformers' LambdaLoss with LambdaRankScheme. The gain is 2^label - 1 as there: with labels in 0..1 it is
    nearly linear in the grade.
    """
    weights = _lambdarank_weights(_ranks(scores, mask))
    return _pairwise_logistic(scores, labels, mask, weights * _gain_differences(labels, mask))


def mse(scores: Tensor, labels: Tensor, mask: Tensor, teacher: Tensor | None) -> Tensor:
    """Return the squared error between scores and the teacher's logits, averaged over the group.

    Ba and Caruana, NIPS 2014. As sentence-transformers' MSELoss, which averages over all pairs of a batch.
    """
    assert teacher is not None
    return _masked_mean((_blank(scores, mask) - _blank(teacher, mask)).square(), mask)


def margin_mse(scores: Tensor, labels: Tensor, mask: Tensor, teacher: Tensor | None) -> Tensor:
    """Return the squared error between the score differences of the model and of the teacher.

    Margin-MSE (Hofstätter et al., arXiv:2010.02666, 2020). The mean is over all pairs of unequal labels; with one
    positive these are the positive with every negative, as in sentence-transformers' MarginMSELoss.
    """
    assert teacher is not None
    errors = _differences(_blank(scores, mask) - _blank(teacher, mask)).square()
    return _masked_mean(errors.flatten(1), _higher_label(labels, mask).flatten(1))


def kl(scores: Tensor, labels: Tensor, mask: Tensor, teacher: Tensor | None) -> Tensor:
    """Return KL(teacher || student) between the softmax distributions over the group's documents.

    Hinton, Vinyals and Dean, NIPS 2014 workshop, with documents as classes and temperature 1. sentence-transformers has
    it for bi-encoders only, as DistillKLDivLoss.
    """
    assert teacher is not None
    target = _log_softmax(teacher, mask)
    return (target.exp() * (target - _log_softmax(scores, mask))).sum(dim=1)


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
    """Return the values with 0 at the padding, for use before any arithmetic: 0 * nan is nan, in gradients too."""
    return values.masked_fill(~mask, 0.0)


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of each row over the mask, 0 for an empty mask (no pair of unequal labels)."""
    return _blank(values, mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)


def _differences(values: Tensor) -> Tensor:
    """Return each document's value minus each other's: (groups, documents, documents)."""
    return values[:, :, None] - values[:, None, :]


def _higher_label(labels: Tensor, mask: Tensor) -> Tensor:
    """Return a mask (groups, documents, documents) of pairs in which the first document has the higher label."""
    return (_differences(labels) > 0) & mask[:, :, None] & mask[:, None, :]


def _log_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Return the log-softmax over the real documents, 0 at the padding."""
    return _blank(functional.log_softmax(scores.masked_fill(~mask, float("-inf")), dim=1), mask)


def _ranks(values: Tensor, mask: Tensor) -> Tensor:
    """Return each document's rank, from 1.0, by descending value; ties keep the group's order, padding is last."""
    order = values.masked_fill(~mask, float("-inf")).argsort(dim=1, descending=True, stable=True)
    return order.argsort(dim=1) + 1.0


def _pairwise_logistic(scores: Tensor, labels: Tensor, mask: Tensor, weights: Tensor | float) -> Tensor:
    """Return the weighted logistic loss of score differences in bits, averaged over all pairs of unequal labels."""
    bits = -functional.logsigmoid(_differences(_blank(scores, mask))) / math.log(2)
    return _masked_mean((weights * bits).flatten(1), _higher_label(labels, mask).flatten(1))


def _lambdarank_weights(ranks: Tensor) -> Tensor:
    """Return the absolute differences of the documents' discounts at their ranks: (groups, documents, documents)."""
    return _differences(1 / torch.log2(1 + ranks)).abs()


def _gain_differences(labels: Tensor, mask: Tensor) -> Tensor:
    """Return the absolute differences of the documents' gains, divided by the group's ideal DCG."""
    gains = torch.exp2(_blank(labels, mask)) - 1
    ranks = torch.arange(1, gains.shape[1] + 1, device=gains.device)
    ideal = (gains.sort(dim=1, descending=True).values / torch.log2(1 + ranks)).sum(dim=1)
    return _differences(gains).abs() / ideal.clamp(min=1e-10)[:, None, None]
