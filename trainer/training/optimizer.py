"""The model as it is trained: what is dropped, frozen, recomputed and compiled, and the optimizer with its rates."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from trainer.errors import RunError, one_line
from trainer.model import Reranker
from trainer.recipe import Train

# Peak rates of the encoder under a fresh classifier, by millions of parameters. From 68M on they are those of the sweep
# published with the Ettin rerankers (2026); below, it found 1.2e-4 (32M) and 2.4e-4 (17M), with 12 and more times as
# many queries in a step.
ENCODER_RATES = ((40, 5e-5), (100, 3e-5), (250, 1.5e-5), (600, 7e-6), (math.inf, 3e-6))
# A ready reranker goes more slowly: users of other tools report collapse at 6e-5. A fresh interaction head goes faster:
# its fitted mixture stays, only the encoder moves, and on runbooks 1e-4 ends higher on dev than 3e-5 (docs/results.md).
READY, FITTED_FIRST = 0.6, 2.0
FUSED = ("cpu", "cuda")  # devices with one kernel for a whole AdamW step
CLASSIFIER_RATE = 1e-3  # of a fresh classifier
FITTED = ("mixture", "lexical", "token_weights")  # fitted before training, which goes through them and leaves them


def prepare_model(section: Train, reranker: Reranker) -> None:
    """Put the recipe's settings into the model; raises RunError where it cannot have them."""
    for module in reranker.model.modules():
        if isinstance(module, nn.Dropout):
            module.p = section.dropout
    for name, weight in reranker.model.named_parameters():
        if reranker.is_interaction and name in FITTED:
            weight.requires_grad_(False)
    if section.dropout:
        reranker.packed = False  # the attention without padding has no dropout
    if section.frozen_layers:
        _freeze(reranker, section.frozen_layers)
    if section.gradient_checkpointing:
        _checkpoint_layers(reranker)
    if section.compile:
        _compile(reranker)


def default_rate(parameters: int, fresh_head: bool, interaction: bool) -> float:
    """Return the peak learning rate of the encoder for a model of so many parameters."""
    by_size = next(rate for millions, rate in ENCODER_RATES if parameters <= millions * 1e6)
    if not fresh_head:
        return by_size * READY
    return by_size * FITTED_FIRST if interaction else by_size


def make_optimizer(section: Train, reranker: Reranker, fresh_head: bool, fused: bool = True) -> torch.optim.AdamW:
    """Return AdamW: matrices of the encoder decay, vectors do not; a fresh classifier has a faster rate and no decay.

    The interaction head's linear term over the first state counts as encoder: hundreds of weights that all move at the
    fast rate outvote the comparison of tokens within a few steps.
    """
    named = {name: weight for name, weight in reranker.model.named_parameters() if weight.requires_grad}
    fast: list[str] = []
    if not reranker.is_interaction:
        encoder = dict(reranker.model.base_model.named_parameters(prefix=reranker.model.base_model_prefix))
        fast = [name for name in named if name not in encoder]
    fresh_classifier = fresh_head and not reranker.is_interaction
    parameters = reranker.model.num_parameters()
    rate = section.learning_rate or default_rate(parameters, fresh_head, reranker.is_interaction)
    usual = CLASSIFIER_RATE if fresh_classifier else rate
    slow = [(name, weight) for name, weight in named.items() if name not in fast]
    matrices, vectors = ([weight for _, weight in slow if (weight.ndim > 1) == matrix] for matrix in (True, False))
    return torch.optim.AdamW(
        [
            {"params": matrices, "lr": rate, "weight_decay": section.weight_decay},
            {"params": vectors, "lr": rate, "weight_decay": 0.0},
            {"params": [named[name] for name in fast], "lr": section.head_learning_rate or usual, "weight_decay": 0.0},
        ],
        fused=fused and reranker.device.type in FUSED,
    )


def _encoder(reranker: Reranker) -> Any:
    return reranker.model.encoder if reranker.is_interaction else reranker.model.base_model


def _freeze(reranker: Reranker, layers: int) -> None:
    """Let the embeddings and the lowest layers be: no gradient goes through them, which is most of a step's time."""
    encoder = _encoder(reranker)
    depth = encoder.config.num_hidden_layers
    if layers > depth:
        raise RunError(f"train.frozen_layers: {layers}, but the model has {depth} layers; lower it")
    stacks = [module for module in encoder.modules() if isinstance(module, nn.ModuleList) and len(module) == depth]
    if not stacks or not hasattr(encoder, "embeddings"):
        kind = encoder.config.model_type
        raise RunError(f"train.frozen_layers: {layers}, but layers of {kind} models cannot be told apart; set it to 0")
    for module in (encoder.get_input_embeddings(), encoder.embeddings, *stacks[0][:layers]):
        module.requires_grad_(False)


def _checkpoint_layers(reranker: Reranker) -> None:
    """Keep only what goes into each layer, and compute the layer again on the way back."""
    encoder = _encoder(reranker)
    try:
        encoder.activation_checkpointing_enable({"use_reentrant": False})
        encoder.disable_input_require_grads()  # asked for besides, it would take gradients through frozen layers
    except ValueError as error:
        raise RunError(f"train.gradient_checkpointing: {one_line(error)} Set it to false.") from None


def _compile(reranker: Reranker) -> None:
    """Compile in place, so that weights keep their names, for padded batches of any size.

    Something small is compiled first: whether there is a compiler would otherwise only show in the middle of dev.
    """
    try:
        torch.compile(torch.neg)(torch.ones(2, device=reranker.model.device))
    except RuntimeError as error:
        raise RunError(
            f"train.compile: torch.compile does not work here ({one_line(error)[:200]}); "
            "install a C++ compiler (and triton for a GPU), or set it to false"
        ) from None
    reranker.packed = False  # packed batches bring their own bounds, which the graph would be compiled for
    reranker.model.compile(dynamic=True)
