"""Linear layers as oneDNN computes them fastest on a CPU, and one cast of a shared input in half precision.

In bf16, torch gives oneDNN the weights as they are, so each product first brings them into the layout of the CPU's
units. Scoring many pairs does this once for all batches. In float32, torch multiplies with MKL, which does not use
AVX-512 on AMD's CPUs; there scoring takes oneDNN, which does. Products are the same but for rounding in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.runtime.precision import Precision, autocast, without_cudnn_attention

# Texts for which weights are prepared. It takes 18 ms for MiniLM-L6, which about 12 pairs of 100 tokens gain.
MANY = 64
SHARED = ("query", "key", "value")  # layers of an attention module that have the same input
UNITS = ("amx_bf16", "avx512_bf16")  # of CPUs on which bf16 was measured


def share_casts(model: nn.Module) -> None:
    """Cast the input of query, key and value layers once under autocast, which would cast it for each of them.

    Training MiniLM-L6 in bf16 is about 10 % faster on a CPU, with the same products. A second call has no effect.
    """
    for module in model.modules():
        layers = [getattr(module, name, None) for name in SHARED]
        if all(type(layer) is nn.Linear for layer in layers) and _cast not in module._forward_pre_hooks.values():
            module.register_forward_pre_hook(_cast, with_kwargs=True)


def _cast(module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    """Return the arguments of an attention module with the hidden states, the first of them, as autocast casts them."""
    del module
    states = arguments[0] if arguments else keywords["hidden_states"]
    if not torch.is_autocast_enabled(states.device.type):
        return None
    states = states.to(torch.get_autocast_dtype(states.device.type))
    return ((states, *arguments[1:]), keywords) if arguments else ((), keywords | {"hidden_states": states})


@contextmanager
def scoring_in(model: nn.Module, device: torch.device, precision: Precision, texts: int) -> Iterator[None]:
    """Compute scores or vectors of `texts` texts in `precision` within the context.

    Gradients cannot be computed within it, and weights must not be changed.
    """
    worthwhile = texts >= MANY or precision == "fp32"  # float32 weights are taken as they are
    prepared = prepare(model, device, precision) if worthwhile else []
    try:
        with autocast(device, precision), without_cudnn_attention(device):
            yield
    finally:
        for module in prepared:
            vars(module).pop("forward", None)


@torch.no_grad()
def prepare(model: nn.Module, device: torch.device, precision: Precision) -> list[nn.Module]:
    """Give the model's layers a `forward` that oneDNN computes, and return them; [] where it would gain nothing.

    Each of them works without the others, so other threads may compute with the model meanwhile.
    """
    if device.type != "cpu" or not can_prepare(precision):
        return []
    activated: dict[Any, Any] = {module: module.dense for module in model.modules() if _is_activated(module)}
    within = set(activated.values())
    alone = [module for module in model.modules() if type(module) is nn.Linear and module not in within]
    prepared = []
    for module in [*alone, *activated]:
        layer, activation = (activated[module], "gelu") if module in activated else (module, "none")
        if "forward" not in vars(module) and layer.weight.dtype == torch.float32:
            module.forward = _prepared(layer, activation, precision)
            prepared.append(module)
    return prepared


def can_prepare(precision: Precision) -> bool:
    """Return whether torch was built with the operators, which its compiler uses, and this CPU gains by them."""
    operators = getattr(torch.ops, "mkldnn", None)
    if not (hasattr(operators, "_linear_pointwise") and hasattr(operators, "_reorder_linear_weight")):
        return False
    capabilities = torch.cpu.get_capabilities()
    if precision == "fp32":
        return str(capabilities.get("cpu_name")).startswith("AMD") and capabilities.get("avx512_f") is True
    return precision == "bf16" and any(capabilities.get(name) is True for name in UNITS)


def _is_activated(module: Any) -> bool:
    """Return whether a module is a linear layer with a GELU, as in BERT and its relatives."""
    children = dict(module.named_children())
    if set(children) != {"dense", "intermediate_act_fn"} or type(children["dense"]) is not nn.Linear:
        return False
    return getattr(children["intermediate_act_fn"], "act", None) is functional.gelu


def _prepared(
    layer: nn.Linear, activation: Literal["none", "gelu"], precision: Precision
) -> Callable[[Tensor], Tensor]:
    """Return the layer's product, bias and activation as one operator, in bf16 on weights in oneDNN's layout."""
    operators: Any = torch.ops.mkldnn
    half = precision == "bf16"
    # float32 weights are taken from the layer in each call, since FSDP replaces them
    weight = operators._reorder_linear_weight(layer.weight.bfloat16(), None) if half else None
    bias = layer.bias.bfloat16() if half and layer.bias is not None else None

    def forward(hidden_states: Tensor) -> Tensor:
        if torch.is_autocast_enabled("cpu") != half:  # a part of the model that computes in the other precision
            product = functional.linear(hidden_states, layer.weight, layer.bias)
            return functional.gelu(product) if activation == "gelu" else product
        if weight is None:
            given = hidden_states, layer.weight, layer.bias
        else:
            given = hidden_states.bfloat16(), weight, bias
        return operators._linear_pointwise(*given, activation, [], "none")

    return forward
