"""Pairs without padding: all tokens of a batch in one row, with attention inside each pair only.

The model stays an ordinary `transformers` checkpoint. It reads one flat sequence whose positions start anew with every
pair, and its attention, put in place through transformers' attention interface, is torch's own for sequences of
varying length (CUDA, half precision). Elsewhere every pair is attended to by itself, which is slow and gives the tests
something to compare with. The layouts are one computation: they give the same logits.

A classifier reads the first token's state alone, so the last layer computes nothing else, in either layout: of six
layers nearly a sixth of the work. Damping between the texts of a pair (interaction.py) needs no bias there: one more
coordinate of queries and keys, +c on one text and -c on the other, puts 2 c^2 between the sides.
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

Batch = dict[str, Tensor]  # input_ids, attention_mask and perhaps token_type_ids: (pairs, length) int64, on the CPU

ARCHITECTURES = ("bert", "roberta", "xlm-roberta", "camembert", "modernbert")  # whose layers were looked at
NAME = "packed"
LONGEST_KEPT = 512  # tokens of a pair whose attention is kept for the backward pass in bf16 on a CPU


@dataclass(frozen=True)
class Packing:
    """Where the pairs of a flat batch lie; travels through the model's forward as the keyword `packing`."""

    bounds: Tensor  # (pairs + 1,) int32: the first token of each pair, and the end
    longest: int  # at least the length of the longest pair
    behind: Tensor | None = None  # (tokens,) bool: on the document's side, where attention is damped across
    damping: float = 0.0

    @property
    def firsts(self) -> Tensor:
        """(pairs,) places of the first tokens."""
        return self.bounds[:-1].long()


def can_pack(model: PreTrainedModel) -> bool:
    """Whether the architecture can: layers hand keywords on to the attention, and the head reads the first token."""
    config = _encoder(model).config
    return config.model_type in ARCHITECTURES and getattr(config, "classifier_pooling", "cls") == "cls"


def prepare(model: PreTrainedModel) -> None:
    """Teach a model both layouts, once; weights, names and what it computes stay as they are."""
    if can_pack(model) and _encoder(model).config._attn_implementation != NAME:
        _encoder(model).config._attn_implementation = NAME
        if not isinstance(model, InteractionForSequenceClassification):
            last = _layers(model)[-1]
            is_bert = hasattr(last, "feed_forward_chunk")
            last.forward = partial(_narrow_bert, last) if is_bert else partial(_narrow_any, last.forward)


def logits(model: PreTrainedModel, batch: Batch, packed: bool) -> Tensor:
    """Logits (pairs,) float32 of a padded batch on the CPU; `packed` computes nothing on the padding."""
    if not packed:
        return model(**_moved(batch, model)).logits.float().squeeze(1)
    if isinstance(model, InteractionForSequenceClassification):
        return model.combine(*_packed_signals(model, batch)).float().squeeze(1)
    return model(**_flat(model, batch, None)).logits.float().squeeze(1)


def signals(model: InteractionForSequenceClassification, batch: Batch, packed: bool) -> Tensor:
    """Return the signals that the interaction head mixes: (pairs, signals) float32 of a padded batch on the CPU."""
    mixed, _ = _packed_signals(model, batch) if packed else model.signals(**_moved(batch, model))
    return mixed.float()


def _packed_signals(model: InteractionForSequenceClassification, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return `model.signals` with attention over the real tokens alone; the comparison is made on padded states."""
    real = batch["attention_mask"].bool()
    query, document, behind = model.texts(batch["input_ids"], real)
    inputs = _flat(model, batch, behind[real])
    outputs = model.encoder(**inputs, output_hidden_states=True)
    ids, real, query, document = (one.to(model.device) for one in (batch["input_ids"], real, query, document))
    padded = []
    for layer in model.config.layers:
        flat = outputs.hidden_states[layer][0]
        padded.append(flat.new_zeros((*ids.shape, flat.shape[-1])).masked_scatter(real[..., None], flat))
    return model.compare(padded, ids, query, document), outputs.last_hidden_state[0, inputs["packing"].firsts]


def _moved(batch: Batch, model: PreTrainedModel) -> Batch:
    return {name: ids.to(model.device, non_blocking=True) for name, ids in batch.items()}


def _flat(model: PreTrainedModel, batch: Batch, behind: Tensor | None) -> dict[str, Any]:
    """Keywords of the model's forward for the batch's real tokens in one row; found on the CPU, where nothing waits."""
    real = batch["attention_mask"].bool()
    encoder = _encoder(model)
    inputs = {name: ids[real][None] for name, ids in batch.items() if name != "attention_mask"}
    inputs["position_ids"] = (real.cumsum(dim=1) - 1 + first_position(model))[real][None]
    bounds = functional.pad(real.sum(dim=1).cumsum(dim=0), (1, 0)).int().to(model.device, non_blocking=True)
    packing = Packing(bounds, real.shape[1])
    if behind is not None:
        packing = replace(packing, behind=behind.to(model.device, non_blocking=True), damping=model.config.damping)
    # ModernBERT would build masks over all tokens of the batch unless it is told that there are none.
    masks = dict.fromkeys(getattr(encoder.config, "layer_types", None) or ())
    return _moved(inputs, model) | {"attention_mask": masks or None, "packing": packing}


def first_position(model: PreTrainedModel) -> int:
    """The position of a text's first token: 0, but RoBERTa and its kin count from behind the padding's id."""
    return getattr(getattr(_encoder(model), "embeddings", None), "padding_idx", -1) + 1


def _encoder(model: Any) -> Any:
    return model.encoder if isinstance(model, InteractionForSequenceClassification) else model.base_model


def _layers(model: PreTrainedModel) -> nn.ModuleList:
    encoder = _encoder(model)
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
    """What transformers calls an attention function; query, key and value are (1, heads, tokens, width) if packed."""
    if packing is None:
        attend = _attend_in_bf16 if _has_slow_backward(query) else sdpa_attention_forward
        return attend(module, query, key, value, attention_mask, **options)
    assert not options["dropout"], "attention of varying length has no dropout; such batches are padded"
    # transformers counts a token itself into the window, torch does not.
    reach = sliding_window - 1 if sliding_window else -1
    asking = (packing.bounds, packing.longest)
    return _attend(_rows(query), _rows(key), _rows(value), packing, asking, options["scaling"], reach)[None], None


def _has_slow_backward(query: Tensor) -> bool:
    """Return whether the backward pass of torch's attention would be slow: bf16 on a CPU.

    It took ten times as long as float32's and a third of a training step (docs/benchmarks.md).
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
    """Return attention (batch, length, heads, width) of (batch, heads, length, width) by matrix products.

    The products keep the attention weights for the backward pass. Where a pair is so long that these would fill the
    memory, torch's attention in float32, which keeps none, takes over. None of the encoders has causal attention.
    """
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if key.shape[2] > LONGEST_KEPT:
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
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    elif attention_mask is not None:
        scores = scores + attention_mask.to(scores.dtype)
    weights = functional.dropout(scores.softmax(dim=-1), dropout)
    return (weights @ value).transpose(1, 2), None


def _rows(states: Tensor) -> Tensor:
    """(1, heads, tokens, width) to (tokens, heads, width)."""
    return states[0].transpose(0, 1)


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packing: Packing,
    asking: tuple[Tensor, int],
    scale: float,
    reach: int = -1,
) -> Tensor:
    """Attention within pairs, all (tokens, heads, width); `asking` are the queries' bounds and most in one pair."""
    width = value.shape[-1]
    if width % 8:  # kernels want multiples of eight
        query, key, value = (functional.pad(states, (0, -width % 8)) for states in (query, key, value))
    if packing.behind is not None:
        side = torch.where(packing.behind, 1.0, -1.0) * math.sqrt(packing.damping / (2 * scale))
        side = functional.pad(side[:, None, None], (0, 7)).to(query.dtype).expand(-1, query.shape[1], -1)
        query, key, value = (
            torch.cat([states, more], dim=-1)
            for states, more in ((query, side), (key, side), (value, torch.zeros_like(side)))
        )  # eight coordinates where one would do, for the same reason
    if query.is_cuda:
        query, key = query.to(value.dtype), key.to(value.dtype)  # rotated ones may be wider
        bounds: Any = (asking[0], packing.bounds, asking[1], packing.longest)
        found: Any = varlen_attn(query, key, value, *bounds, scale=scale, window_size=(reach, reach))
    else:
        found = _one_by_one(query, key, value, asking[0].tolist(), packing.bounds.tolist(), scale, reach)
    return found[..., :width]


def _one_by_one(
    query: Tensor, key: Tensor, value: Tensor, asking: list[int], bounds: list[int], scale: float, reach: int
) -> Tensor:
    """What `varlen_attn` computes, pair after pair."""
    found = []
    for pair in range(len(bounds) - 1):
        own, others = slice(*asking[pair : pair + 2]), slice(*bounds[pair : pair + 2])
        mask = None
        if reach >= 0:
            places = torch.arange(others.stop - others.start, device=query.device)
            mask = (places[:, None] - places[None, :]).abs() <= reach
        heads = (query[own].transpose(0, 1), key[others].transpose(0, 1), value[others].transpose(0, 1))
        mixed = functional.scaled_dot_product_attention(*heads, attn_mask=mask, scale=scale)
        found.append(mixed.transpose(0, 1))
    return torch.cat(found)


def _narrow_bert(
    layer: Any,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    *_: Any,
    packing: Packing | None = None,
    **__: Any,
) -> Tensor:
    """The last layer of BERT and its kin for the first token of every pair: states (pairs, 1, hidden)."""
    attention = layer.attention.self
    first = hidden_states[:, :1] if packing is None else hidden_states[0, packing.firsts, None]
    query = attention.query(first).unflatten(-1, (attention.num_attention_heads, -1))[:, 0]
    if packing is None:
        mixed = _attend_once(attention, query, hidden_states, attention_mask)
    else:
        key, value = (
            project(hidden_states)[0].unflatten(-1, (attention.num_attention_heads, -1))
            for project in (attention.key, attention.value)
        )
        asking = (torch.arange(len(packing.bounds), dtype=torch.int32, device=query.device), 1)
        mixed = _attend(query, key, value, packing, asking, attention.scaling)
    return layer.feed_forward_chunk(layer.attention.output(mixed.flatten(1)[:, None], first))


def _attend_once(attention: Any, query: Tensor, states: Tensor, mask: Tensor | None) -> Tensor:
    """Attention (pairs, heads, width) of one token a pair to padded states (pairs, length, hidden).

    No key or value is computed: q (W h + b) = (q W) h + q b, and the same for the mean of the values, so that each head
    reads the states themselves; a projection of every token becomes one of every pair.
    """
    heads = (attention.num_attention_heads, -1)
    keys, values = (project.weight.unflatten(0, heads) for project in (attention.key, attention.value))
    key_bias, value_bias = (project.bias.unflatten(0, heads) for project in (attention.key, attention.value))
    scores = torch.einsum("phw,hwc->phc", query, keys) @ states.transpose(1, 2)
    scores = (scores + (query * key_bias).sum(dim=-1, keepdim=True)) * attention.scaling
    if mask is not None:
        seen = mask[:, :, 0].expand_as(scores)
        scores = scores.masked_fill(~seen, -math.inf) if seen.dtype == torch.bool else scores + seen
    shares = functional.dropout(scores.softmax(dim=-1), attention.dropout.p, attention.training)
    mixed = torch.einsum("phc,hwc->phw", shares @ states, values)
    return mixed + shares.sum(dim=-1, keepdim=True) * value_bias


def _narrow_any(
    forward: Any, hidden_states: Tensor, *inputs: Any, packing: Packing | None = None, **named: Any
) -> Tensor:
    """A last layer of any kind that hands on the first token of every packed pair: states (pairs, 1, hidden)."""
    states = forward(hidden_states, *inputs, packing=packing, **named)
    return states if packing is None else states[0, packing.firsts, None]


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
