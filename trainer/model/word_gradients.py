"""Gradients of the word embeddings on a CPU, added in place.

By default the backward pass of every batch makes a gradient of all word embeddings, 47 MB for MiniLM-L6 and 1 GB for
XLM-R large, fills it with zeros and adds it to the sum. Here the rows of the tokens that occur are added to the sum.
MiniLM-L6 trained 1.1 times as fast in float32 and 1.3 times in bf16 (docs/benchmarks.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.model.packing import encoder_of


@contextmanager
def words_in_place(model: Any, wanted: bool = True) -> Iterator[None]:
    """Within the context add the gradients of the model's word embeddings in place, without calling their hooks.

    Nothing changes on a GPU, for embeddings that compute more than a look-up, and if it is not wanted.
    """
    words = encoder_of(model).get_input_embeddings()
    if not wanted or not _is_lookup(words):
        yield
        return
    words.forward = lambda ids: _Lookup.apply(words.weight, ids, words.padding_idx)
    try:
        yield
    finally:
        del words.forward


def _is_lookup(words: Any) -> bool:
    """Return whether the module is a plain embedding with trained weights on a CPU."""
    if type(words) is not nn.Embedding or words.max_norm is not None or words.scale_grad_by_freq or words.sparse:
        return False
    return words.weight.requires_grad and words.weight.device.type == "cpu"


class _Lookup(torch.autograd.Function):
    """The look-up of rows, whose backward pass adds to `weight.grad` and returns nothing."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, ids: Tensor, padding: int | None) -> Tensor:
        """Return the rows (..., width) of `weight` (words, width) at `ids` (...) int64."""
        ctx.weight, ctx.ids, ctx.padding = weight, ids, padding
        return functional.embedding(ids, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, None]:
        """Add the gradient (..., width) of the rows to that of the weights; the padding's row gets none."""
        (gradient,) = gradients
        weight = ctx.weight
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
        rows, places = ctx.ids.flatten().unique(return_inverse=True)
        flat = gradient.flatten(end_dim=-2).to(weight.dtype)
        sums = torch.ops.aten.embedding_dense_backward(flat, places, len(rows), -1, False)
        if ctx.padding is not None:
            sums[rows == ctx.padding] = 0.0
        weight.grad.index_add_(0, rows, sums)
        return None, None, None
