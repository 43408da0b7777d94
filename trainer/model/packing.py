"""Sequence packing: the pairs of a batch concatenated without padding, with attention within each pair only.

The model stays an ordinary `transformers` checkpoint. It reads one sequence whose position ids restart with every pair,
and its attention function, registered through transformers' attention interface, is torch's variable-length attention
(CUDA, half precision). On other devices attention is computed pair by pair, which is slow and serves the tests as a
reference. The packed and the padded layout give the same logits.

A classifier uses only the first token's state, so the last layer computes no other, in either layout: nearly a sixth of
the work of six layers. Variable-length attention takes no bias, so the interaction head's cross-segment attention bias
is an extra coordinate of queries and keys: +c in one segment and -c in the other makes scores across segments 2 c^2
lower than those within them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from trainer.model.interaction import InteractionForSequenceClassification
from trainer.runtime.linear import share_casts

Batch = dict[str, Tensor]  # input_ids, attention_mask, optional token_type_ids: (pairs, length) int64, on the CPU

# Architectures whose layers are known to pass `packing` on. A decoder's score is read at the last token.
ENCODERS = ("bert", "roberta", "xlm-roberta", "camembert", "modernbert")
DECODERS = ("qwen3", "qwen2", "llama", "gemma", "mistral")
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


def can_pack(model: PreTrainedModel) -> bool:
    """Return whether layers pass keywords on to the attention function and the head uses the first or last token."""
    config = encoder_of(model).config
    return config.model_type in (*ENCODERS, *DECODERS) and getattr(config, "classifier_pooling", "cls") == "cls"


def _reads_last(model: PreTrainedModel) -> bool:
    """Return whether the model is a decoder, whose score is read at the last token."""
    return model.config.model_type in DECODERS


def prepare(model: PreTrainedModel) -> None:
    """Make a model accept both layouts; weights, names and outputs are unchanged. A second call has no effect."""
    share_casts(model)
    if can_pack(model) and encoder_of(model).config._attn_implementation != NAME:
        encoder_of(model).config._attn_implementation = NAME
        if not isinstance(model, InteractionForSequenceClassification) and not _reads_last(model):
            last = _layers(model)[-1]
            is_bert = hasattr(last, "feed_forward_chunk")
            wrap = partial(_first_token_bert_layer, last) if is_bert else partial(_first_token_layer, last.forward)
            last.forward = wrap


def logits(model: PreTrainedModel, batch: Batch, packed: bool) -> Tensor:
    """Return the logits (pairs,) float32 of a padded batch on the CPU; `packed` skips the padding."""
    if not packed:
        return model(**_to_device(batch, model)).logits.float().squeeze(1)
    if isinstance(model, InteractionForSequenceClassification):
        return model.combine(*_packed_signals(model, batch)).float().squeeze(1)
    if _reads_last(model):
        inputs = _pack(model, batch, None)
        states = model.base_model(**inputs).last_hidden_state[0, inputs["packing"].lasts]
        score: Any = model.score
        return score(states).float().squeeze(1)
    return model(**_pack(model, batch, None)).logits.float().squeeze(1)


def signals(model: InteractionForSequenceClassification, batch: Batch, packed: bool) -> Tensor:
    """Return the interaction head's signals (pairs, signals) float32 of a padded batch on the CPU."""
    mixed, _ = _packed_signals(model, batch) if packed else model.signals(**_to_device(batch, model))
    return mixed.float()


def _packed_signals(model: InteractionForSequenceClassification, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return `model.signals` with a packed encoder; its states are padded again before tokens are compared."""
    real = batch["attention_mask"].bool()
    query, document, second_segment = model.texts(batch["input_ids"], real)
    inputs = _pack(model, batch, second_segment[real])
    outputs = model.encoder(**inputs, output_hidden_states=True)
    ids, real, query, document = (one.to(model.device) for one in (batch["input_ids"], real, query, document))
    padded = []
    for layer in model.config.layers:
        states = outputs.hidden_states[layer][0]
        padded.append(states.new_zeros((*ids.shape, states.shape[-1])).masked_scatter(real[..., None], states))
    return model.compare(padded, ids, query, document), outputs.last_hidden_state[0, inputs["packing"].firsts]


def _to_device(batch: Batch, model: PreTrainedModel) -> Batch:
    """Return the batch on the model's device."""
    return {name: ids.to(model.device, non_blocking=True) for name, ids in batch.items()}


def _pack(model: PreTrainedModel, batch: Batch, is_document: Tensor | None) -> dict[str, Any]:
    """Return the packed inputs of the model's forward, computed on the CPU, so that the GPU is not synchronised.

    `is_document` (tokens,) bool, for the interaction head's cross-segment attention bias.
    """
    real = batch["attention_mask"].bool()
    encoder = encoder_of(model)
    inputs = {name: ids[real][None] for name, ids in batch.items() if name != "attention_mask"}
    inputs["position_ids"] = (real.cumsum(dim=1) - 1 + first_position(model))[real][None]
    bounds = functional.pad(real.sum(dim=1).cumsum(dim=0), (1, 0)).int().to(model.device, non_blocking=True)
    packing = Packing(bounds, real.shape[1])
    if is_document is not None:
        is_document = is_document.to(model.device, non_blocking=True)
        packing = replace(packing, is_document=is_document, bias=model.config.damping)
    # Models build masks over all tokens of the batch unless they get an entry for each kind of layer, or decoders
    # without kinds of layers a mask with four dimensions, which they pass on as it is.
    masks: Any = dict.fromkeys(getattr(encoder.config, "layer_types", None) or ())
    if not masks:
        masks = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=model.device) if _reads_last(model) else None
    return _to_device(inputs, model) | {"attention_mask": masks, "packing": packing}


def first_position(model: PreTrainedModel) -> int:
    """Return the position id of the first token: 0, but the padding id + 1 in RoBERTa and its variants."""
    return getattr(getattr(encoder_of(model), "embeddings", None), "padding_idx", -1) + 1


def encoder_of(model: Any) -> Any:
    """Return the encoder of a cross-encoder with either head."""
    return model.encoder if isinstance(model, InteractionForSequenceClassification) else model.base_model


def _layers(model: PreTrainedModel) -> nn.ModuleList:
    """Return the encoder's layers."""
    encoder = encoder_of(model)
    return encoder.layers if hasattr(encoder, "layers") else encoder.encoder.layer


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packing: Packing | None = None,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """Return attention outputs, with the signature of transformers' attention functions.

    Packed query, key and value are (1, heads, tokens, width), and the output is (1, tokens, heads, width).
    """
    is_causal = getattr(module, "is_causal", False)
    if packing is None:
        attend = _attend_in_bf16 if _has_slow_backward(query) and not is_causal else sdpa_attention_forward
        return attend(module, query, key, value, attention_mask, **options)
    assert not options["dropout"], "variable-length attention has no dropout; batches are padded instead"
    # transformers' window includes the token itself, torch's does not.
    reach = sliding_window - 1 if sliding_window else -1
    window = (reach, 0 if is_causal else reach)
    query_bounds = (packing.bounds, packing.longest)
    query, key, value = (_tokens_first(states) for states in (query, key, value))
    return _attend(query, key, value, packing, query_bounds, options["scaling"], window)[None], None


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


def _tokens_first(states: Tensor) -> Tensor:
    """Return states (1, heads, tokens, width) as (tokens, heads, width)."""
    return states[0].transpose(0, 1)


def _attend(
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


def _first_token_bert_layer(
    layer: Any,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    *_: Any,
    packing: Packing | None = None,
    **__: Any,
) -> Tensor:
    """Return the states (pairs, 1, hidden) of the first tokens after the last layer of BERT and its variants."""
    attention = layer.attention.self
    first = hidden_states[:, :1] if packing is None else hidden_states[0, packing.firsts, None]
    query = attention.query(first).unflatten(-1, (attention.num_attention_heads, -1))[:, 0]
    if packing is None:
        mixed = _attend_first_token(attention, query, hidden_states, attention_mask)
    else:
        key, value = (
            project(hidden_states)[0].unflatten(-1, (attention.num_attention_heads, -1))
            for project in (attention.key, attention.value)
        )
        query_bounds = (torch.arange(len(packing.bounds), dtype=torch.int32, device=query.device), 1)
        mixed = _attend(query, key, value, packing, query_bounds, attention.scaling)
    return layer.feed_forward_chunk(layer.attention.output(mixed.flatten(1)[:, None], first))


def _attend_first_token(attention: Any, query: Tensor, states: Tensor, mask: Tensor | None) -> Tensor:
    """Return the attention (pairs, heads, width) of one query per pair over padded states (pairs, length, hidden).

    Keys and values are not computed: q (W h + b) = (q W) h + q b, and likewise for the weighted mean of the values, so
    that each head attends to the states themselves, with one projection per pair instead of one per token.
    """
    heads = (attention.num_attention_heads, -1)
    keys, values = (project.weight.unflatten(0, heads) for project in (attention.key, attention.value))
    key_bias, value_bias = (project.bias.unflatten(0, heads) for project in (attention.key, attention.value))
    scores = torch.einsum("phw,hwc->phc", query, keys) @ states.transpose(1, 2)
    scores = (scores + (query * key_bias).sum(dim=-1, keepdim=True)) * attention.scaling
    if mask is not None:
        first = mask[:, :, 0].expand_as(scores)
        scores = scores.masked_fill(~first, -math.inf) if first.dtype == torch.bool else scores + first
    weights = functional.dropout(scores.softmax(dim=-1), attention.dropout.p, attention.training)
    mixed = torch.einsum("phc,hwc->phw", weights @ states, values)
    return mixed + weights.sum(dim=-1, keepdim=True) * value_bias


def _first_token_layer(
    forward: Any, hidden_states: Tensor, *inputs: Any, packing: Packing | None = None, **named: Any
) -> Tensor:
    """Return the states of a last layer of any kind, for packed batches only the first tokens' (pairs, 1, hidden)."""
    states = forward(hidden_states, *inputs, packing=packing, **named)
    return states if packing is None else states[0, packing.firsts, None]


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
