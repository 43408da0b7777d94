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

NDCG2_WEIGHT = 10.0  # mu of NDCG-Loss2++, as in sentence-transformers


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


def ranknet(scores: Tensor, labels: Tensor, mask: Tensor, teacher: Tensor | None) -> Tensor:
    """Return the logistic loss of score differences, averaged over all pairs of unequal labels.

    RankNet (Burges et al., ICML 2005); in bits, as sentence-transformers' RankNetLoss by default, not in nats as in the
    paper.
    """
    return _pairwise_logistic(scores, labels, mask, 1.0)


def lambdarank(scores: Tensor, labels: Tensor, mask: Tensor, teacher: Tensor | None) -> Tensor:
    """Return RankNet's loss with each pair weighted by the change of nDCG when the two are swapped.

    LambdaRank (Burges, Ragno and Le, NIPS 2006), as a loss with that gradient (Wang et al., CIKM 2018), which is
    sentence-transformers' LambdaLoss with LambdaRankScheme. The gain is 2^label - 1 as there: with labels in 0..1 it is
    nearly linear in the grade.
    """
    weights = _lambdarank_weights(_ranks(scores, mask))
    return _pairwise_logistic(scores, labels, mask, weights * _gain_differences(labels, mask))


def ndcg2pp(scores: Tensor, labels: Tensor, mask: Tensor, teacher: Tensor | None) -> Tensor:
    """Return NDCG-Loss2++: LambdaRank's weights plus ten times those of a tighter bound of nDCG.

    Wang et al., CIKM 2018. The bound discounts by the difference of the two ranks, not by the ranks themselves. As
    sentence-transformers' LambdaLoss with its default scheme; gain as in `lambdarank`.
    """
    ranks = _ranks(scores, mask)
    distances = _differences(ranks).abs()
    # The clamp is for the diagonal, which is no pair: it avoids an infinite 1 / log2(1 + 0) and a NaN gradient.
    bound = 1 / torch.log2(1 + distances.clamp(min=1)) - 1 / torch.log2(2 + distances)
    weights = NDCG2_WEIGHT * bound + _lambdarank_weights(ranks)
    return _pairwise_logistic(scores, labels, mask, weights * _gain_differences(labels, mask))


def listmle(scores: Tensor, labels: Tensor, mask: Tensor, teacher: Tensor | None) -> Tensor:
    """Return the negative log-likelihood of the order by label under the Plackett-Luce model.

    ListMLE (Xia et al., ICML 2008). Equal labels keep the group's order (positives, then the hardest negatives first):
    as sentence-transformers' ListMLELoss, whose default takes a query's documents as already ordered.
    """
    return -_log_likelihoods(scores, labels, mask).sum(dim=1)


def plistmle(scores: Tensor, labels: Tensor, mask: Tensor, teacher: Tensor | None) -> Tensor:
    """Return ListMLE with position-dependent weights: position i of n has the weight 2^(n - i) - 1.

    p-ListMLE (Lan et al., UAI 2014). Weights are divided by their sum as in sentence-transformers' PListMLELoss, unlike
    in the paper. Equal labels as in `listmle`.
    """
    # Divided by 2^(n - 1) first: the same normalised weights, without overflow at 128 documents.
    weights = torch.exp2(1.0 - _ranks(labels, mask)) - torch.exp2(1.0 - mask.sum(dim=1, keepdim=True))
    weights = _blank(weights, mask)
    total = weights.sum(dim=1).clamp(min=torch.finfo(weights.dtype).tiny)  # the weight of a single document is 0
    return -(weights * _log_likelihoods(scores, labels, mask)).sum(dim=1) / total


def adr_mse(scores: Tensor, labels: Tensor, mask: Tensor, teacher: Tensor | None) -> Tensor:
    """Return the squared error of approximate ranks, divided by log2(1 + true rank).

    ADR-MSE (Rank-DistiLLM: Schlatt et al., ECIR 2025). The true rank is by teacher scores if there are any, else by
    labels; ties get their mean rank. sentence-transformers' ADRMSELoss takes either as its labels, and averages over
    all documents of a batch.
    """
    target = _blank(labels if teacher is None else teacher, mask)
    differences, others = _differences(target), mask[:, None, :]
    above, tied = ((each & others).sum(dim=2) for each in (differences < 0, differences == 0))
    true = above + (tied + 1) / 2
    outranked = torch.sigmoid(-_differences(_blank(scores, mask)))
    smooth = 0.5 + torch.where(others, outranked, 0.0).sum(dim=2)  # 1 minus sigmoid(0) of a document with itself
    return _masked_mean((true - smooth).square() / torch.log2(1 + true), mask)


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
    "ranknet": ranknet,
    "lambdarank": lambdarank,
    "ndcg2pp": ndcg2pp,
    "listmle": listmle,
    "plistmle": plistmle,
    "adr_mse": adr_mse,
    "mse": mse,
    "margin_mse": margin_mse,
    "kl": kl,
}

DISTILLATION: frozenset[str] = frozenset({"mse", "margin_mse", "kl"})
"""Losses that need teacher scores; `adr_mse` uses them if there are any."""


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


def _log_likelihoods(scores: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """Return the Plackett-Luce log-probabilities: of each document among itself and those ranked below it by label.

    The padding is 0.
    """
    ranks = _ranks(labels, mask)
    # Not -inf, which gives NaN in the rows of the padding.
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    remaining = _differences(ranks) <= 0
    return _blank(scores - scores[:, None, :].masked_fill(~remaining, float("-inf")).logsumexp(dim=2), mask)
