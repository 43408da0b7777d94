"""Layouts of the pairs that a model reads: padded, packed or joined, with the same logits.

Packed, the pairs of a batch follow each other without padding; joined, several padded batches do. The model stays an
ordinary `transformers` checkpoint: it reads one sequence whose position ids restart with every pair, and its attention
function (`attention.py`) attends within each pair only.

A classifier uses only the first token's state, so the last layer computes no other, in any layout: nearly a sixth of
the work of six layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from trainer.model.attention import NAME, Joined, Packing, attend_first_tokens, attend_packed
from trainer.model.batching import within
from trainer.model.interaction import InteractionForSequenceClassification
from trainer.runtime.linear import share_casts

Batch = dict[str, Tensor]  # input_ids, attention_mask, optional token_type_ids: (pairs, length) int64, on the CPU

# Architectures whose layers are known to pass `packing` on. A decoder's score is read at the last token.
ENCODERS = ("bert", "roberta", "xlm-roberta", "camembert", "modernbert")
DECODERS = ("qwen3", "qwen2", "llama", "gemma", "mistral")
JOINED = ("bert", "roberta", "xlm-roberta", "camembert")  # joined layouts have no sliding windows
# In bf16 a CPU multiplies 3,000 tokens at once 1.3 times as fast as 750 four times, more gain nothing. The total is
# rounded, because the products of each new shape are compiled.
JOINED_TOKENS, ROUNDED_TOKENS = 4096, 128


def can_pack(model: PreTrainedModel) -> bool:
    """Return whether layers pass keywords on to the attention function and the head uses the first or last token."""
    config = encoder_of(model).config
    return config.model_type in (*ENCODERS, *DECODERS) and getattr(config, "classifier_pooling", "cls") == "cls"


def can_join(model: PreTrainedModel) -> bool:
    """Return whether several batches can be joined: where the model can pack, and attends to all tokens of a pair.

    A compiled model would be compiled again for each combination of batches.
    """
    return can_pack(model) and encoder_of(model).config.model_type in JOINED and model._compiled_call_impl is None


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
        states = model.base_model(**inputs).last_hidden_state.squeeze(0)[inputs["packing"].lasts]
        score: Any = model.score
        return score(states).float().squeeze(1)
    return model(**_pack(model, batch, None)).logits.float().squeeze(1)


def training_logits(model: PreTrainedModel, batches: Sequence[Batch], packed: bool) -> Tensor:
    """Return the logits (pairs of all batches,) float32 of padded batches on the CPU, in the layout for training."""
    if not (can_join(model) and _in_bf16_on_cpu(model)):
        return torch.cat([logits(model, batch, packed) for batch in batches])
    sizes = [batch["input_ids"].numel() for batch in batches]
    return torch.cat([_joined_logits(model, some) for some in within(JOINED_TOKENS, batches, sizes)])


def _in_bf16_on_cpu(model: PreTrainedModel) -> bool:
    """Return whether the model computes in bf16 on a CPU."""
    is_half = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    return is_half and model.device.type == "cpu"


def _joined_logits(model: PreTrainedModel, batches: Sequence[Batch]) -> Tensor:
    """Return the logits (pairs,) float32 of padded batches, whose layers run on all of them at once."""
    if isinstance(model, InteractionForSequenceClassification):
        return model.combine(*_joined_signals(model, batches)).float().squeeze(1)
    masks = (batch["attention_mask"][:, None, None].bool() for batch in batches)
    least = torch.finfo(torch.bfloat16).min
    biases = [torch.where(mask, 0.0, least).bfloat16() for mask in masks]
    return model(**_join(model, batches, biases)).logits.float().squeeze(1)


def _joined_signals(model: InteractionForSequenceClassification, batches: Sequence[Batch]) -> tuple[Tensor, Tensor]:
    """Return `model.signals` of joined batches; tokens are compared batch by batch."""
    texts, biases = [], []
    for batch in batches:
        real = batch["attention_mask"].bool()
        query, document, second_segment = model.texts(batch["input_ids"], real)
        texts.append((batch["input_ids"], query, document))
        bias: Any = model.attention_bias(second_segment, real)  # one bias: these encoders have no sliding windows
        biases.append(bias.bfloat16())
    inputs = _join(model, batches, biases)
    outputs = model.encoder(**inputs, output_hidden_states=True)
    joined = inputs["packing"]
    layers = [joined.split(outputs.hidden_states[layer].squeeze(0)) for layer in model.config.layers]
    mixed = [model.compare(list(states), *text) for text, *states in zip(texts, *layers, strict=True)]
    return torch.cat(mixed), outputs.last_hidden_state.squeeze(0)[joined.firsts]


def _join(model: PreTrainedModel, batches: Sequence[Batch], biases: list[Tensor]) -> dict[str, Any]:
    """Return the inputs of the model's forward for padded batches as one sequence."""
    shapes = [(len(batch["input_ids"]), batch["input_ids"].shape[1]) for batch in batches]
    tokens = sum(pairs * length for pairs, length in shapes)
    spare = -tokens % ROUNDED_TOKENS

    def one_sequence(parts: list[Tensor]) -> Tensor:
        return functional.pad(torch.cat([part.flatten() for part in parts]), (0, spare))[None]

    names = [name for name in batches[0] if name != "attention_mask"]
    inputs: dict[str, Any] = {name: one_sequence([batch[name] for batch in batches]) for name in names}
    positions = [batch["attention_mask"].cumsum(dim=1) - 1 for batch in batches]
    inputs["position_ids"] = one_sequence([position.clamp(min=0) for position in positions]) + first_position(model)
    return inputs | {"attention_mask": None, "packing": Joined(shapes, biases, spare)}


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
        states = outputs.hidden_states[layer].squeeze(0)
        padded.append(states.new_zeros((*ids.shape, states.shape[-1])).masked_scatter(real[..., None], states))
    return model.compare(padded, ids, query, document), outputs.last_hidden_state.squeeze(0)[inputs["packing"].firsts]


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


def _first_token_bert_layer(
    layer: Any,
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    *_: Any,
    packing: Packing | Joined | None = None,
    **__: Any,
) -> Tensor:
    """Return the states (pairs, 1, hidden) of the first tokens after the last layer of BERT and its variants."""
    attention = layer.attention.self
    first = hidden_states[:, :1] if packing is None else hidden_states.squeeze(0)[packing.firsts, None]
    query = attention.query(first).unflatten(-1, (attention.num_attention_heads, -1))[:, 0]
    if packing is None:
        mixed = attend_first_tokens(attention, query, [hidden_states], [attention_mask])
    elif isinstance(packing, Joined):
        mixed = attend_first_tokens(attention, query, packing.split(hidden_states.squeeze(0)), packing.biases)
    else:
        key, value = (
            project(hidden_states).squeeze(0).unflatten(-1, (attention.num_attention_heads, -1))
            for project in (attention.key, attention.value)
        )
        query_bounds = (torch.arange(len(packing.bounds), dtype=torch.int32, device=query.device), 1)
        mixed = attend_packed(query, key, value, packing, query_bounds, attention.scaling)
    return layer.feed_forward_chunk(layer.attention.output(mixed.flatten(1)[:, None], first))


def _first_token_layer(
    forward: Any, hidden_states: Tensor, *inputs: Any, packing: Packing | None = None, **named: Any
) -> Tensor:
    """Return the states of a last layer of any kind, for packed batches only the first tokens' (pairs, 1, hidden)."""
    states = forward(hidden_states, *inputs, packing=packing, **named)
    return states if packing is None else states.squeeze(0)[packing.firsts, None]
