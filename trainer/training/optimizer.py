"""Training settings of the model (dropout, frozen layers, checkpointing, compilation), and AdamW with its rates."""

from __future__ import annotations

import math

import torch
from torch import nn

from trainer.errors import RunError, one_line
from trainer.model import Reranker
from trainer.model.packing import encoder_of
from trainer.recipe import Train
from trainer.training.adapter import add_adapter

# Peak rates of the encoder with a fresh classifier, by millions of parameters. From 68M on they are those of the sweep
# published with the Ettin rerankers (2026); below, that sweep chose 1.2e-4 (32M) and 2.4e-4 (17M), with at least 12
# times as many queries in a step.
ENCODER_RATES = ((40, 5e-5), (100, 3e-5), (250, 1.5e-5), (600, 7e-6), (math.inf, 3e-6))
# Factors of these rates. A trained reranker gets a lower rate: users of other tools report collapse at 6e-5. A fitted
# interaction head gets a higher one: its mixture is frozen, only the encoder is trained, and on runbooks 1e-4 ends
# higher on dev than 3e-5 (docs/results.md).
TRAINED_FACTOR, FITTED_FACTOR = 0.6, 2.0
# Peak rates of LoRA by millions of parameters: those of published recipes (2e-4 for bge-reranker-v2-gemma, 5e-5 for a
# Qwen3-Reranker-4B that already ranks). Not measured here.
ADAPTER_RATES = ((2000, 2e-4), (math.inf, 1e-4))
RANKING_FACTOR = 0.5
FUSED = ("cpu", "cuda")  # devices with a fused AdamW kernel
CLASSIFIER_RATE = 1e-3  # of a fresh classifier
FITTED_WEIGHTS = ("mixture", "lexical", "token_weights")  # fitted before training and then frozen


def configure_model(section: Train, reranker: Reranker, ranks: bool = True) -> None:
    """Apply the recipe's settings to the model; raises RunError if it does not support them.

    `ranks` says whether the base was trained to rank.
    """
    if section.adapter == "lora":
        add_adapter(section, reranker, ranks)
    for module in reranker.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = section.dropout
    for name, weight in reranker.model.named_parameters():
        if reranker.is_interaction and name in FITTED_WEIGHTS:
            weight.requires_grad_(False)
    if section.dropout:
        reranker.packed = False  # variable-length attention has no dropout
    if section.frozen_layers:
        _freeze(reranker, section.frozen_layers)
    if section.gradient_checkpointing:
        _checkpoint_layers(reranker)
    if section.compile:
        _compile(reranker)


def default_rate_of_adapter(parameters: int, ranks: bool) -> float:
    """Return the default peak learning rate of a LoRA adapter for a number of model parameters."""
    by_size = next(rate for millions, rate in ADAPTER_RATES if parameters <= millions * 1e6)
    return by_size * RANKING_FACTOR if ranks else by_size


def default_rate(parameters: int, fresh_head: bool, interaction: bool) -> float:
    """Return the default peak learning rate of the encoder for a number of model parameters."""
    by_size = next(rate for millions, rate in ENCODER_RATES if parameters <= millions * 1e6)
    if not fresh_head:
        return by_size * TRAINED_FACTOR
    return by_size * FITTED_FACTOR if interaction else by_size


def make_optimizer(
    section: Train, reranker: Reranker, fresh_head: bool, fused: bool = True, ranks: bool = True
) -> torch.optim.AdamW:
    """Return AdamW with weight decay on the encoder's matrices only; a fresh classifier has a higher rate and no decay.

    The interaction head's linear term on the first token's state has the encoder's rate: at the classifier's rate its
    hundreds of weights dominate the token comparison within a few steps.
    """
    named = {name: weight for name, weight in reranker.model.named_parameters() if weight.requires_grad}
    head: list[str] = []
    if not reranker.is_interaction:
        encoder = dict(reranker.model.base_model.named_parameters(prefix=reranker.model.base_model_prefix))
        head = [name for name in named if name not in encoder]
    fresh_classifier = fresh_head and not reranker.is_interaction
    parameters = reranker.model.num_parameters()
    by_default = default_rate(parameters, fresh_head or not ranks, reranker.is_interaction)
    if section.adapter == "lora":
        by_default = default_rate_of_adapter(parameters, ranks)
    rate = section.learning_rate or by_default
    head_rate = section.head_learning_rate or (CLASSIFIER_RATE if fresh_classifier else rate)
    others = [(name, weight) for name, weight in named.items() if name not in head]
    matrices, vectors = ([weight for _, weight in others if (weight.ndim > 1) == matrix] for matrix in (True, False))
    return torch.optim.AdamW(
        [
            {"params": matrices, "lr": rate, "weight_decay": section.weight_decay},
            {"params": vectors, "lr": rate, "weight_decay": 0.0},
            {"params": [named[name] for name in head], "lr": head_rate, "weight_decay": 0.0},
        ],
        fused=fused and reranker.device.type in FUSED,
    )


def _freeze(reranker: Reranker, layers: int) -> None:
    """Freeze the embeddings and the lowest layers; the backward pass, most of a step's time, ends above them."""
    encoder = encoder_of(reranker.model)
    depth = encoder.config.num_hidden_layers
    if layers > depth:
        raise RunError(f"train.frozen_layers: {layers}, but the model has {depth} layers; lower it")
    stacks = [module for module in encoder.modules() if isinstance(module, nn.ModuleList) and len(module) == depth]
    if not stacks:
        kind = encoder.config.model_type
        raise RunError(
            f"train.frozen_layers: {layers}, but {kind} models have no list of layers to freeze; set it to 0"
        )
    below = [encoder.embeddings] if hasattr(encoder, "embeddings") else []
    for module in (encoder.get_input_embeddings(), *below, *stacks[0][:layers]):
        module.requires_grad_(False)


def _checkpoint_layers(reranker: Reranker) -> None:
    """Turn on gradient checkpointing: only layer inputs are saved, and layers recomputed in the backward pass."""
    encoder = encoder_of(reranker.model)
    try:
        encoder.activation_checkpointing_enable({"use_reentrant": False})
        encoder.disable_input_require_grads()  # else gradients would go through frozen layers
    except ValueError as error:
        raise RunError(f"train.gradient_checkpointing: {one_line(error)} Set it to false.") from None


def _compile(reranker: Reranker) -> None:
    """Compile the model in place, so that weights keep their names, for padded batches of any size.

    A small function is compiled first, because a missing compiler would otherwise show only in an evaluation.
    """
    try:
        torch.compile(torch.neg)(torch.ones(2, device=reranker.model.device))
    except RuntimeError as error:
        raise RunError(
            f"train.compile: torch.compile does not work here ({one_line(error)[:200]}); "
            "install a C++ compiler (and triton for a GPU), or set it to false"
        ) from None
    reranker.model.compile(dynamic=True)
    reranker.compute_in(reranker.precision)  # compiled models are not joined
    reranker.packed = False  # the graph would be specialised to the bounds of each packed batch
