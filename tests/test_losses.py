"""Losses against sentence-transformers, against torch, and by hand."""

from math import log
from typing import get_args

import pytest
import torch
from sentence_transformers import CrossEncoder
from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss, ListNetLoss
from torch.nn import functional

from trainer.losses import LOSSES, listwise, pointwise
from trainer.recipe import Train


class Echo:
    """A model for sentence-transformers' losses whose score of a document is the number written in it."""

    num_labels = 1
    device = torch.device("cpu")

    def preprocess(self, pairs, prompt=None, task=None):
        return {"scores": torch.tensor([float(document) for _, document in pairs])}

    def __call__(self, inputs):
        return inputs


def groups(sizes, seed=0):
    """Random scores, labels and mask of groups of the given sizes; padding holds wild numbers."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(max(sizes)) < torch.tensor(sizes)[:, None]
    scores = torch.randn(mask.shape, generator=generator) * 3
    labels = torch.rand(mask.shape, generator=generator)
    return scores.masked_fill(~mask, 77.0), labels.masked_fill(~mask, 5.0), mask


def everywhere(scores):
    return torch.ones_like(scores, dtype=torch.bool)


def test_every_loss_of_the_recipe_is_there():
    assert set(LOSSES) == set(get_args(Train.model_fields["loss"].annotation))


@pytest.mark.parametrize("sizes", [[5, 5, 5], [2, 7, 4, 1]])
def test_listwise_is_listnet_where_labels_are_its_softmax(sizes):
    scores, labels, mask = groups(sizes)
    documents = [[repr(score.item()) for score in row[keep]] for row, keep in zip(scores, mask, strict=True)]
    plain_labels = [row[keep] for row, keep in zip(labels, mask, strict=True)]
    theirs = ListNetLoss(Echo())([["q"] * len(sizes), documents], plain_labels)
    shares = labels.masked_fill(~mask, float("-inf")).softmax(dim=1)

    assert listwise(scores, shares, mask).mean().item() == pytest.approx(theirs.item(), abs=1e-5)


def test_listwise_with_one_positive_is_cross_entropy():
    scores, _, _ = groups([6, 6, 6])
    positives = torch.tensor([0, 3, 5])
    labels = functional.one_hot(positives, 6).float()
    expected = functional.cross_entropy(scores, positives, reduction="none")
    torch.testing.assert_close(listwise(scores, labels, everywhere(scores)), expected)
    torch.testing.assert_close(listwise(scores, 0.5 * labels, everywhere(scores)), expected)  # a grade of 1 among 2


def test_listwise_by_hand():
    # softmax(0, ln 2, ln 3) = 1/6, 2/6, 3/6; labels 0, 0.5, 1 share as 0, 1/3, 2/3:  1/3 ln 3 + 2/3 ln 2
    scores, labels = torch.tensor([[0.0, log(2), log(3)]]), torch.tensor([[0.0, 0.5, 1.0]])
    loss = listwise(scores, labels, everywhere(scores))
    assert loss.tolist() == pytest.approx([log(3) / 3 + 2 * log(2) / 3])


def test_pointwise_is_sentence_transformers_binary_cross_entropy(tiny):
    model = CrossEncoder(str(tiny["reranker"]), device="cpu")
    queries = [query for query in ("disk", "queue lag", "certificate expired") for _ in range(4)]
    documents = ["inodes run out", "consumer lag grows", "certificate", "rollback keeps the old image"] * 3
    labels = torch.rand(12, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        theirs = BinaryCrossEntropyLoss(model)([queries, documents], labels)
        inputs = model.preprocess(list(zip(queries, documents, strict=True)))
        scores = model(inputs)["scores"].view(3, 4)

    assert scores.std() > 0
    assert pointwise(scores, labels.view(3, 4), everywhere(scores)).mean().item() == pytest.approx(theirs.item())


def test_pointwise_is_torchs_binary_cross_entropy_averaged_by_group():
    scores, labels, mask = groups([2, 7, 4])
    expected = [
        functional.binary_cross_entropy_with_logits(row[keep], wanted[keep])
        for row, wanted, keep in zip(scores, labels, mask, strict=True)
    ]
    torch.testing.assert_close(pointwise(scores, labels, mask), torch.stack(expected))


def test_pointwise_by_hand():
    # sigmoid(0) = 1/2 against 0: ln 2.  sigmoid(ln 3) = 3/4 against 1/2: -(ln 3/4 + ln 1/4) / 2
    scores, labels = torch.tensor([[0.0, log(3)]]), torch.tensor([[0.0, 0.5]])
    loss = pointwise(scores, labels, everywhere(scores))
    assert loss.tolist() == pytest.approx([(log(2) - (log(3 / 4) + log(1 / 4)) / 2) / 2])


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_padding_changes_neither_value_nor_gradient(loss):
    scores, labels, mask = groups([2, 7, 4])
    padded = scores.clone().requires_grad_()
    values = loss(padded, labels, mask)
    values.sum().backward()

    assert values.shape == (3,)
    for row, size in enumerate([2, 7, 4]):
        alone = scores[row : row + 1, :size].clone().requires_grad_()
        value = loss(alone, labels[row : row + 1, :size], everywhere(alone))
        value.sum().backward()
        torch.testing.assert_close(values[row], value[0])
        torch.testing.assert_close(padded.grad[row, :size], alone.grad[0])
        assert alone.grad.abs().sum() > 0
        assert torch.all(padded.grad[row, size:] == 0)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_a_step_along_the_gradient_lowers_the_loss(loss):
    scores, labels, mask = groups([3, 5])
    scores.requires_grad_()
    before = loss(scores, labels, mask).sum()
    before.backward()
    assert loss(scores - 0.1 * scores.grad, labels, mask).sum() < before


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_scores_far_apart_leave_the_loss_finite(loss):
    scores, labels = torch.tensor([[-300.0, 300.0]], requires_grad=True), torch.tensor([[1.0, 0.0]])
    value = loss(scores, labels, everywhere(scores))
    value.sum().backward()
    assert torch.isfinite(value).all()
    assert torch.isfinite(scores.grad).all()
