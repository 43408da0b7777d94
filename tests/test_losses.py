"""Losses by hand, against sentence-transformers' own, against torch, and what all of them owe: padding, order, sizes.

A loss here is one number a group. sentence-transformers gives one number a batch, averaged over groups, documents or
pairs; each comparison says over which.
"""

from functools import partial
from itertools import combinations
from math import log, log2, sqrt
from typing import get_args

import pytest
import torch
from sentence_transformers import CrossEncoder
from sentence_transformers.cross_encoder.losses import (
    BinaryCrossEntropyLoss,
    LambdaLoss,
    LambdaRankScheme,
    ListNetLoss,
    MarginMSELoss,
    MSELoss,
)
from sentence_transformers.sentence_transformer.losses import DistillKLDivLoss
from torch.nn import functional

from trainer.recipe import Train
from trainer.training.losses import DISTILLATION, LOSSES, kl, listwise, margin_mse, mse, pointwise

SIZES = [[5, 5, 5], [2, 7, 4, 1]]
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


class Echo(CrossEncoder):
    """A model for sentence-transformers' losses whose score of a document is the number written in it."""

    num_labels = 1
    device = torch.device("cpu")

    def __init__(self):
        torch.nn.Module.__init__(self)

    def preprocess(self, pairs, prompt=None, task=None):
        return {"scores": torch.tensor([float(document) for _, document in pairs])}

    def forward(self, inputs):
        return inputs


def groups(sizes, padding=77.0, seed=0, dtype=torch.float32):
    """Random scores, labels of four grades, mask and teacher scores of groups of the given sizes.

    The first document of a group has the highest grade, the last one (of two or more) none.
    """
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(max(sizes)) < torch.tensor(sizes)[:, None]
    scores, teacher = (torch.randn(mask.shape, generator=generator, dtype=dtype) * 3 for _ in range(2))
    labels = torch.randint(0, 4, mask.shape, generator=generator).to(dtype) / 3
    labels[range(len(sizes)), [size - 1 for size in sizes]] = 0.0
    labels[:, 0] = 1.0
    scores, labels, teacher = (values.masked_fill(~mask, padding) for values in (scores, labels, teacher))
    return scores, labels, mask, teacher


def everywhere(scores):
    return torch.ones_like(scores, dtype=torch.bool)


def one(loss, scores, labels, teacher=None):
    """The loss of a single group without padding."""
    matrices = [None if values is None else torch.tensor([values]) for values in (scores, labels, teacher)]
    return loss(matrices[0], matrices[1], everywhere(matrices[0]), matrices[2]).item()


def theirs(make, scores, targets, mask):
    """The value of a loss of sentence-transformers that takes lists of documents with a target each."""
    documents = [[repr(score.item()) for score in row[keep]] for row, keep in zip(scores, mask, strict=True)]
    wanted = [row[keep] for row, keep in zip(targets, mask, strict=True)]
    return make(Echo())([["q"] * len(documents), documents], wanted).item()


def test_every_loss_of_the_recipe_is_implemented():
    assert set(LOSSES) == set(get_args(Train.model_fields["loss"].annotation))


# By hand


def test_listwise_by_hand():
    # softmax(0, ln 2, ln 3) = 1/6, 2/6, 3/6; labels 0, 0.5, 1 share as 0, 1/3, 2/3:  1/3 ln 3 + 2/3 ln 2
    assert one(listwise, [0.0, log(2), log(3)], [0.0, 0.5, 1.0]) == pytest.approx(log(3) / 3 + 2 * log(2) / 3)


def test_pointwise_by_hand():
    # sigmoid(0) = 1/2 against 0: ln 2.  sigmoid(ln 3) = 3/4 against 1/2: -(ln 3/4 + ln 1/4) / 2
    assert one(pointwise, [0.0, log(3)], [0.0, 0.5]) == pytest.approx((log(2) - (log(3 / 4) + log(1 / 4)) / 2) / 2)


# Pairs of scores 0, ln 3, -ln 7 with labels 1, 1/2, 0, in bits:
#   first and second  sigmoid(-ln 3) = 1/4, 2 bits;  first and third  sigmoid(ln 7) = 7/8;  second and third  21/22
# Gains 2^label - 1 are 1, sqrt 2 - 1, 0; the best DCG has them on ranks 1 and 2, discounted by log2 2 = 1 and log2 3.
SCORES, LABELS = [0.0, log(3), -log(7)], [1.0, 0.5, 0.0]
BITS = [2.0, log2(8 / 7), log2(22 / 21)]
GAIN = sqrt(2) - 1
BEST = 1 + GAIN / log2(3)
GAINS = [(1 - GAIN) / BEST, 1 / BEST, GAIN / BEST]  # differences within the three pairs


def test_lambdarank_by_hand():
    # The scores put the second document first: ranks 2, 1, 3 with 1/log2(1 + rank) = 1/log2 3, 1, 1/2.
    swaps = [1 - 1 / log2(3), 1 / log2(3) - 1 / 2, 1 - 1 / 2]
    expected = sum(swap * gain * bits for swap, gain, bits in zip(swaps, GAINS, BITS, strict=True)) / 3
    assert one(LOSSES["lambdarank"], SCORES, LABELS) == pytest.approx(expected)


def test_mse_by_hand():
    assert one(mse, [1.0, 2.0], [1.0, 0.0], [3.0, 1.0]) == pytest.approx((2**2 + 1**2) / 2)


def test_margin_mse_by_hand():
    # Positive minus negatives: 1 - 2 = -1 and 1 - 0 = 1; the teacher's 5 - 1 = 4 and 5 - 2 = 3
    assert one(margin_mse, [1.0, 2.0, 0.0], [1.0, 0.0, 0.0], [5.0, 1.0, 2.0]) == pytest.approx((5**2 + 2**2) / 2)


def test_margin_mse_takes_every_pair_of_unequal_labels():
    # Labels 1, 1/2, 0, 0: positives minus the two negatives are 3, 3, 1, 1; grade 2 minus grade 1 is 2; all against 0
    loss = one(margin_mse, [3.0, 1.0, 0.0, 0.0], [1.0, 0.5, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0])
    assert loss == pytest.approx((9 + 9 + 1 + 1 + 4) / 5)


def test_kl_by_hand():
    # softmax(0, ln 3) = 1/4, 3/4 of the teacher against 1/2, 1/2
    assert one(kl, [2.0, 2.0], [1.0, 0.0], [0.0, log(3)]) == pytest.approx(log(1 / 2) / 4 + 3 / 4 * log(3 / 2))


# Against sentence-transformers


@pytest.mark.parametrize("sizes", SIZES)
def test_listwise_is_listnet_where_labels_are_its_softmax(sizes):
    scores, labels, mask, _ = groups(sizes)
    shares = labels.masked_fill(~mask, float("-inf")).softmax(dim=1)
    ours = listwise(scores, shares, mask, None).mean().item()  # ListNetLoss averages over groups
    assert ours == pytest.approx(theirs(ListNetLoss, scores, labels, mask), abs=1e-5)


@pytest.mark.parametrize("sizes", SIZES)
def test_lambdarank_is_sentence_transformers_weighted_by_pairs(sizes):
    scores, labels, mask, _ = groups(sizes)
    pairs = [(row[keep][:, None] > row[keep]).sum().item() for row, keep in zip(labels, mask, strict=True)]
    ours = (LOSSES["lambdarank"](scores, labels, mask, None) * torch.tensor(pairs)).sum().item() / sum(pairs)
    make = partial(LambdaLoss, weighting_scheme=LambdaRankScheme())
    assert ours == pytest.approx(theirs(make, scores, labels, mask), rel=1e-5)


@pytest.mark.parametrize("sizes", SIZES)
def test_mse_is_sentence_transformers_weighted_by_documents(sizes):
    scores, labels, mask, teacher = groups(sizes)
    counts = mask.sum(dim=1)
    documents = [repr(score) for score in scores[mask].tolist()]
    expected = MSELoss(Echo())([["q"] * len(documents), documents], teacher[mask]).item()
    ours = (mse(scores, labels, mask, teacher) * counts).sum().item() / counts.sum().item()
    assert ours == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("sizes", [[5, 5, 5], [2, 7, 4]])
def test_margin_mse_is_sentence_transformers_where_there_is_one_positive(sizes):
    scores, _, mask, teacher = groups(sizes)
    labels = torch.zeros_like(scores)
    labels[:, 0] = 1.0
    values = margin_mse(scores, labels, mask, teacher)
    for value, row, wanted, keep in zip(values, scores, teacher, mask, strict=True):
        documents = [[repr(score)] for score in row[keep].tolist()]  # a column each, so a batch cannot be ragged
        expected = MarginMSELoss(Echo())([["q"], *documents], [wanted[keep]])
        assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    if mask.all():  # it averages over groups times negatives
        columns = [[repr(score) for score in column] for column in scores.T.tolist()]
        expected = MarginMSELoss(Echo())([["q"] * len(sizes), *columns], list(teacher))
        assert values.mean().item() == pytest.approx(expected.item(), rel=1e-5)


def test_kl_is_that_of_sentence_transformers_bi_encoders():
    scores, labels, mask, teacher = groups([5, 5, 5])
    # Its scores are dot products: a query of 1 and documents of one number each. It averages over groups.
    columns = [torch.ones(3, 1), *scores.T[:, :, None]]
    expected = DistillKLDivLoss(torch.nn.Identity()).compute_loss_from_embeddings(columns, teacher)
    assert kl(scores, labels, mask, teacher).mean().item() == pytest.approx(expected.item(), rel=1e-5)


def test_pointwise_is_sentence_transformers_binary_cross_entropy(tiny):
    model = CrossEncoder(str(tiny["reranker"]), device="cpu")
    queries = [query for query in ("disk", "queue lag", "certificate expired") for _ in range(4)]
    documents = ["inodes run out", "consumer lag grows", "certificate", "rollback keeps the old image"] * 3
    labels = torch.rand(12, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = BinaryCrossEntropyLoss(model)([queries, documents], labels)
        inputs = model.preprocess(list(zip(queries, documents, strict=True)))
        scores = model(inputs)["scores"].view(3, 4)

    assert scores.std() > 0
    ours = pointwise(scores, labels.view(3, 4), everywhere(scores), None)
    assert ours.mean().item() == pytest.approx(expected.item())


# Against torch


def test_listwise_with_one_positive_is_cross_entropy():
    scores, _, mask, _ = groups([6, 6, 6])
    positives = torch.tensor([0, 3, 5])
    labels = functional.one_hot(positives, 6).float()
    expected = functional.cross_entropy(scores, positives, reduction="none")
    torch.testing.assert_close(listwise(scores, labels, mask, None), expected)
    torch.testing.assert_close(listwise(scores, 0.5 * labels, mask, None), expected)  # a grade of 1 among 2


def test_pointwise_is_torchs_binary_cross_entropy_averaged_by_group():
    scores, labels, mask, _ = groups([2, 7, 4])
    expected = [
        functional.binary_cross_entropy_with_logits(row[keep], wanted[keep])
        for row, wanted, keep in zip(scores, labels, mask, strict=True)
    ]
    torch.testing.assert_close(pointwise(scores, labels, mask, None), torch.stack(expected))


def test_kl_is_torchs_of_each_ragged_group():
    scores, labels, mask, teacher = groups([2, 7, 4])
    expected = [
        functional.kl_div(row[keep].log_softmax(0), wanted[keep].log_softmax(0), reduction="sum", log_target=True)
        for row, wanted, keep in zip(scores, teacher, mask, strict=True)
    ]
    torch.testing.assert_close(kl(scores, labels, mask, teacher), torch.stack(expected))


# What every loss owes


@every_loss
@pytest.mark.parametrize("padding", [77.0, -1e30, float("nan"), float("inf"), float("-inf")])
def test_padding_changes_neither_value_nor_gradient(loss, padding):
    scores, labels, mask, teacher = groups([2, 7, 4], padding)
    padded = scores.clone().requires_grad_()
    values = loss(padded, labels, mask, teacher)
    values.sum().backward()

    assert values.shape == (3,)
    for row, size in enumerate([2, 7, 4]):
        alone = scores[row : row + 1, :size].clone().requires_grad_()
        others = [matrix[row : row + 1, :size] for matrix in (labels, mask, teacher)]
        value = loss(alone, *others)
        value.sum().backward()
        torch.testing.assert_close(values[row], value[0])
        torch.testing.assert_close(padded.grad[row, :size], alone.grad[0])
        assert alone.grad.abs().sum() > 0
        assert torch.all(padded.grad[row, size:] == 0)


@every_loss
def test_the_loss_of_a_group_does_not_depend_on_the_other_groups(loss):
    batch = groups([4, 6, 6])
    company = groups([4, 6, 6], seed=1)
    company = [torch.cat([ours[:1], others[1:]]) for ours, others in zip(batch, company, strict=True)]
    before, after = loss(*batch), loss(*company)
    torch.testing.assert_close(before[0], after[0], rtol=0, atol=0)
    assert torch.all(before[1:] != after[1:])


@every_loss
def test_gradients_are_those_of_finite_differences(loss):
    scores, labels, mask, teacher = groups([2, 7, 4], dtype=torch.float64)
    scores.requires_grad_()
    assert torch.autograd.gradcheck(lambda scores: loss(scores, labels, mask, teacher), scores)


@every_loss
@pytest.mark.parametrize("top", [1e4, 0.0], ids=["far apart", "all equal"])
def test_scores_far_apart_or_all_equal_leave_value_and_gradient_finite(loss, top):
    _, labels, mask, _ = groups([6, 3])
    scores = torch.linspace(-top, top, 6).repeat(2, 1).requires_grad_()
    values = loss(scores, labels, mask, -scores.detach())
    values.sum().backward()
    assert torch.isfinite(values).all()
    assert torch.isfinite(scores.grad).all()


@every_loss
def test_a_step_along_the_gradient_lowers_the_loss(loss):
    scores, labels, mask, teacher = groups([3, 5])
    scores.requires_grad_()
    before = loss(scores, labels, mask, teacher).sum()
    before.backward()
    assert loss(scores - 0.01 * scores.grad, labels, mask, teacher).sum() < before


@every_loss
@pytest.mark.parametrize(("higher", "lower"), [pair for pair in combinations(range(5), 2) if pair != (3, 4)])
def test_swapping_a_document_below_one_of_lower_grade_raises_the_loss(loss, higher, lower):
    labels = torch.tensor([[1.0, 2 / 3, 1 / 3, 0.0, 0.0]])
    scores, teacher = torch.tensor([[3.0, 1.0, 0.5, -1.0, -2.0]]), torch.tensor([[6.0, 3.0, 2.0, -1.0, -3.0]])
    swapped = scores.clone()
    swapped[0, [higher, lower]] = scores[0, [lower, higher]]
    mask = everywhere(scores)
    assert loss(swapped, labels, mask, teacher) > loss(scores, labels, mask, teacher)


@every_loss
def test_a_group_of_one_document_has_a_finite_loss(loss):
    scores = torch.tensor([[0.5]], requires_grad=True)
    value = loss(scores, torch.ones(1, 1), everywhere(scores), torch.ones(1, 1))
    value.sum().backward()
    assert torch.isfinite(value).all()
    assert torch.isfinite(scores.grad).all()


@pytest.mark.parametrize("name", LOSSES)
def test_exactly_the_distillation_losses_need_teacher_scores(name):
    scores, labels, mask, _ = groups([3, 5])
    if name in DISTILLATION:
        with pytest.raises(AssertionError):
            LOSSES[name](scores, labels, mask, None)
    else:
        assert torch.isfinite(LOSSES[name](scores, labels, mask, None)).all()
