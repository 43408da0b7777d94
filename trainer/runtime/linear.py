"""Linear layers for scoring in bf16 on a CPU, with weights in the memory layout of oneDNN's products.

torch gives oneDNN the weights as they are, so each product first brings them into the layout of the CPU's units.
Scoring many pairs does this once for all batches. Products, and so scores, are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.runtime.precision import Precision, autocast, without_cudnn_attention

MANY = 200  # texts for which weights are prepared: that takes 18 ms for MiniLM-L6 on two cores
UNITS = ("amx_bf16", "avx512_bf16")  # of CPUs on which it was measured


@contextmanager
def scoring_in(model: nn.Module, device: torch.device, precision: Precision, texts: int) -> Iterator[None]:
    """Compute scores or vectors of `texts` texts in `precision` within the context.

    Gradients cannot be computed within it, and weights must not be changed.
    """
    prepared = texts >= MANY and precision == "bf16" and device.type == "cpu" and can_prepare()
    replaced = _replace_linear_layers(model) if prepared else []
    try:
        with autocast(device, precision), without_cudnn_attention(device):
            yield
    finally:
        for module in replaced:
            vars(module).pop("forward", None)


def can_prepare() -> bool:
    """Return whether torch was built with the operators, which its compiler uses, and this CPU has the units."""
    operators = getattr(torch.ops, "mkldnn", None)
    has_operators = hasattr(operators, "_linear_pointwise") and hasattr(operators, "_reorder_linear_weight")
    capabilities = torch.cpu.get_capabilities()
    return has_operators and any(capabilities.get(name) is True for name in UNITS)


@torch.no_grad()
def _replace_linear_layers(model: nn.Module) -> list[nn.Module]:
    """Give linear layers a prepared `forward`, and return the modules that have one now."""
    cast, replaced = _Cast(), []
    fused = {id(layer): activation for layer, activation in _activated(model)}
    for module in model.modules():
        if type(module) is nn.Linear and "forward" not in vars(module):
            activation = fused.get(id(module))
            module.forward = partial(_prepared(module, "gelu" if activation else "none"), cast)
            replaced.append(module)
            if activation is not None:
                activation.forward = lambda x: x  # the layer before it applied it
                replaced.append(activation)
    return replaced


def _activated(model: nn.Module) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Yield linear layers followed by a GELU of their own, as BERT and its relatives have them."""
    for module in model.modules():
        layer, activation = getattr(module, "dense", None), getattr(module, "intermediate_act_fn", None)
        if type(layer) is nn.Linear and getattr(activation, "act", None) is functional.gelu:
            yield layer, activation


class _Cast:
    """The last input in bf16: query, key and value layers have the same one."""

    def __init__(self) -> None:
        self._given: tuple[Tensor, int] | None = None  # and its version, which rises when it is changed in place
        self._cast = torch.empty(0)

    def __call__(self, hidden: Tensor) -> Tensor:
        if hidden.is_inference():  # such tensors have no version
            return hidden.to(torch.bfloat16)
        if self._given is None or hidden is not self._given[0] or hidden._version != self._given[1]:
            self._given, self._cast = (hidden, hidden._version), hidden.to(torch.bfloat16)
        return self._cast


def _prepared(layer: nn.Linear, activation: str) -> Callable[[_Cast, Tensor], Tensor]:
    """Return the layer's product, bias and activation as one operator on weights in oneDNN's layout."""
    operators: Any = torch.ops.mkldnn
    weight = operators._reorder_linear_weight(layer.weight.to(torch.bfloat16), None)
    bias = None if layer.bias is None else layer.bias.to(torch.bfloat16)

    def forward(cast: _Cast, hidden: Tensor) -> Tensor:
        if not torch.is_autocast_enabled("cpu"):  # a part of the model that computes in float32
            product = functional.linear(hidden, layer.weight, layer.bias)
            return functional.gelu(product) if activation == "gelu" else product
        return operators._linear_pointwise(cast(hidden), weight, bias, activation, [], "none")

    return forward
