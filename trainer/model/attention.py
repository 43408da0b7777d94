"""Attention over three layouts of a batch, registered as one attention function of transformers.

Padded: rectangles of pairs, by torch's attention. Packed: all pairs in one sequence without padding, by torch's
variable-length attention (CUDA, half precision); elsewhere pair by pair, which is slow and serves the tests as a
reference. Joined: several padded batches in one sequence, one batch after the other (a CPU in bf16).

Variable-length attention takes no bias, so the interaction head's cross-segment attention bias is an extra coordinate
of queries and keys: +c in one segment and -c in the other makes scores across segments 2 c^2 lower than those within
them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

Window = tuple[int, int]  # tokens attended to before and after each token, -1 for all
NAME = "packed"
MAX_SAVED_LENGTH = 512  # tokens up to which attention weights are saved for the backward pass in bf16 on a CPU


@dataclass(frozen=True)
class Packing:
    """The layout of a packed batch, passed through the model's forward as the keyword `packing`.

    With `is_document`, `bias` is subtracted from the attention scores between query and document.
    """

    bounds: Tensor  # (pairs + 1,) int32: first token of each pair, and the total
    longest: int  # upper bound of the pair lengths
    is_document: Tensor | None = None  # (tokens,) bool
    bias: float = 0.0

    @property
    def firsts(self) -> Tensor:
        """The positions (pairs,) int64 of the first tokens."""
        return self.bounds[:-1].long()

    @property
    def lasts(self) -> Tensor:
        """The positions (pairs,) int64 of the last tokens."""
        return self.bounds[1:].long() - 1


@dataclass(frozen=True)
class Joined:
    """The layout of padded batches joined into one sequence, passed like `Packing`.

    `shapes` are the pairs and length of each batch, and each bias is what is added to its attention scores, (pairs, 1,
    1 or length, length). `spare` tokens after the last batch belong to none.
    """

    shapes: list[tuple[int, int]]
    biases: list[Tensor]
    spare: int

    @property
    def firsts(self) -> Tensor:
        """The positions (pairs,) int64 of the first tokens."""
        ends = list(accumulate(pairs * length for pairs, length in self.shapes))
        rows = ((end, pairs, length) for end, (pairs, length) in zip(ends, self.shapes, strict=True))
        return torch.cat([torch.arange(end - pairs * length, end, length) for end, pairs, length in rows])

    def split(self, states: Tensor) -> list[Tensor]:
        """Return the states (pairs, length, ...) of each batch from those of the sequence (tokens, ...)."""
        parts = states.split([*(pairs * length for pairs, length in self.shapes), self.spare])
        return [part.unflatten(0, shape) for part, shape in zip(parts, self.shapes, strict=False)]


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packing: Packing | Joined | None = None,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """Return attention outputs, with the signature of transformers' attention functions.

    Packed or joined query, key and value are (1, heads, tokens, width), and the output is (1, tokens, heads, width).
    """
    is_causal = getattr(module, "is_causal", False)
    if packing is None:
        attend = _attend_in_bf16 if _has_slow_backward(query) and not is_causal else sdpa_attention_forward
        return attend(module, query, key, value, attention_mask, **options)
    query, key, value = (_tokens_first(states) for states in (query, key, value))
    if isinstance(packing, Joined):
        return _attend_batch_by_batch(module, query, key, value, packing, **options)[None], None
    assert not options["dropout"], "variable-length attention has no dropout; batches are padded instead"
    # transformers' window includes the token itself, torch's does not.
    reach = sliding_window - 1 if sliding_window else -1
    window = (reach, 0 if is_causal else reach)
    query_bounds = (packing.bounds, packing.longest)
    return attend_packed(query, key, value, packing, query_bounds, options["scaling"], window)[None], None


def _has_slow_backward(query: Tensor) -> bool:
    """Return whether the backward pass of torch's attention would be slow: bf16 on a CPU.

    It took ten times as long as in float32, and a third of a training step (docs/benchmarks.md).
    """
    return query.dtype == torch.bfloat16 and query.device.type == "cpu" and torch.is_grad_enabled()


def _attend_in_bf16(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Return attention (batch, length, heads, width) of inputs (batch, heads, length, width) by matrix products.

    The attention weights are saved for the backward pass. Pairs longer than MAX_SAVED_LENGTH would need too much memory
    for that; there torch's attention in float32, which saves none, is used. It is never causal: decoders use torch's.
    """
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if key.shape[2] > MAX_SAVED_LENGTH:
        query, key, value = (states.float() for states in (query, key, value))
        if attention_mask is not None and attention_mask.is_floating_point():
            attention_mask = attention_mask.float()
        with torch.autocast("cpu", enabled=False):
            mixed, _ = sdpa_attention_forward(
                module, query, key, value, attention_mask, dropout=dropout, scaling=scale, **options
            )
        return mixed.bfloat16(), None
    scores = (query * scale) @ key.transpose(2, 3)
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        attention_mask = torch.where(attention_mask, 0.0, torch.finfo(scores.dtype).min)
    if attention_mask is not None:
        scores += attention_mask.to(scores.dtype)  # unlike filled scores, it has no backward pass
    weights = functional.dropout(scores.softmax(dim=-1), dropout)
    return (weights @ value).transpose(1, 2), None


def _attend_batch_by_batch(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, joined: Joined, **options: Any
) -> Tensor:
    """Return attention (tokens, heads, width) within the pairs of joined batches; inputs have that shape too."""
    mixed = []
    batches = (joined.split(states) for states in (query, key, value))
    for bias, *states in zip(joined.biases, *batches, strict=True):
        queries, keys, values = (one.transpose(1, 2) for one in states)
        batch, _ = _attend_in_bf16(module, queries, keys, values, bias, **options)
        mixed.append(batch.flatten(0, 1))
    return torch.cat([*mixed, query.new_zeros(joined.spare, *query.shape[1:])])


def _tokens_first(states: Tensor) -> Tensor:
    """Return states (1, heads, tokens, width) as (tokens, heads, width).

    Unlike `states[0]`, `squeeze` has a backward pass without copies.
    """
    return states.squeeze(0).transpose(0, 1)


def attend_packed(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packing: Packing,
    query_bounds: tuple[Tensor, int],
    scale: float,
    window: Window = (-1, -1),
) -> Tensor:
    """Return attention within pairs; inputs and output are (tokens, heads, width).

    `query_bounds` are the bounds of each pair's query tokens (pairs + 1,) int32 and the largest number in one pair;
    `window` are the numbers of tokens attended to before and after each token, -1 for all. Keys and values may have
    fewer heads than queries.
    """
    width = value.shape[-1]
    if width % 8:  # the kernels need multiples of eight
        query, key, value = (functional.pad(states, (0, -width % 8)) for states in (query, key, value))
    if packing.is_document is not None:
        sign = torch.where(packing.is_document, 1.0, -1.0) * math.sqrt(packing.bias / (2 * scale))
        # One coordinate is enough; eight, because the kernels need multiples of eight.
        sign = functional.pad(sign[:, None, None], (0, 7)).to(query.dtype).expand(-1, query.shape[1], -1)
        query, key, value = (
            torch.cat([states, extra], dim=-1)
            for states, extra in ((query, sign), (key, sign), (value, torch.zeros_like(sign)))
        )
    if query.is_cuda:
        query, key = query.to(value.dtype), key.to(value.dtype)  # rotary embeddings may return float32
        shared = query.shape[1] != key.shape[1]
        bounds: Any = (query_bounds[0], packing.bounds, query_bounds[1], packing.longest)
        outputs: Any = varlen_attn(query, key, value, *bounds, scale=scale, window_size=window, enable_gqa=shared)
    else:
        outputs = _attend_pair_by_pair(
            query, key, value, query_bounds[0].tolist(), packing.bounds.tolist(), scale, window
        )
    return outputs[..., :width]


def _attend_pair_by_pair(
    query: Tensor, key: Tensor, value: Tensor, query_bounds: list[int], bounds: list[int], scale: float, window: Window
) -> Tensor:
    """Return the same as `varlen_attn`, computed pair by pair."""
    outputs = []
    for pair in range(len(bounds) - 1):
        queries, keys = slice(*query_bounds[pair : pair + 2]), slice(*bounds[pair : pair + 2])
        mask = None
        if window != (-1, -1):
            positions = torch.arange(keys.stop - keys.start, device=query.device)
            before = positions[:, None] - positions[None, :]
            nearest, farthest = (math.inf if reach < 0 else reach for reach in window[::-1])
            mask = (before <= farthest) & (-before <= nearest)
        heads = (query[queries].transpose(0, 1), key[keys].transpose(0, 1), value[keys].transpose(0, 1))
        mixed = functional.scaled_dot_product_attention(
            *heads, attn_mask=mask, scale=scale, enable_gqa=query.shape[1] != key.shape[1]
        )
        outputs.append(mixed.transpose(0, 1))
    return torch.cat(outputs)


def attend_first_tokens(
    attention: Any, query: Tensor, batches: Sequence[Tensor], biases: Sequence[Tensor | None]
) -> Tensor:
    """Return the attention (pairs, heads, width) of one query per pair over padded states (pairs, length, hidden).

    The states come in one or more batches. Each bias (pairs, 1, 1 or length, length) is added to a batch's scores, or
    masks them if it is boolean. Keys and values are not computed: q (W h + b) = (q W) h + q b, and likewise for the
    weighted mean of the values, so that each head attends to the states themselves, with one projection per pair
    instead of one per token.
    """
    heads = (attention.num_attention_heads, -1)
    keys, values = (project.weight.unflatten(0, heads) for project in (attention.key, attention.value))
    key_bias, value_bias = (project.bias.unflatten(0, heads) for project in (attention.key, attention.value))
    projected = _by_batch(torch.einsum("phw,hwc->phc", query, keys), batches)
    offsets = _by_batch((query * key_bias).sum(dim=-1, keepdim=True), batches)
    means, totals = [], []
    for states, bias, one, offset in zip(batches, biases, projected, offsets, strict=True):
        scores = (one @ states.transpose(1, 2) + offset) * attention.scaling
        if bias is not None:
            first = bias[:, :, 0].expand_as(scores)
            scores = scores.masked_fill(~first, -math.inf) if first.dtype == torch.bool else scores + first
        weights = functional.dropout(scores.softmax(dim=-1), attention.dropout.p, attention.training)
        means.append(weights @ states)
        totals.append(weights.sum(dim=-1, keepdim=True))
    return torch.einsum("phc,hwc->phw", torch.cat(means), values) + torch.cat(totals) * value_bias


def _by_batch(values: Tensor, batches: Sequence[Tensor]) -> Sequence[Tensor]:
    """Return the values (pairs, ...) of each batch; those of a single one as they are, for ONNX graphs of any size."""
    return [values] if len(batches) == 1 else values.split([len(states) for states in batches])


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
