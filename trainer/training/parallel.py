"""The differences between one device, data parallelism (DDP) and sharded models (FSDP2).

Each process makes as many passes as its groups and its memory need and accumulates gradients; a last pass, the same on
all processes, synchronises them. By default FSDP2 gathers weights and scatters gradients in every layer of every pass;
here weights are gathered in the first pass of a step and kept to its end. Between steps a device holds its shard of the
weights and of AdamW's moments; during a step all weights and gradients, as under DDP.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from torch import Tensor
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from torch.distributed.tensor import DTensor

from trainer.model import Batches, Reranker, ScoringModel
from trainer.model.packing import Batch


def is_sharded(accelerator: Accelerator) -> bool:
    """Return whether the model is sharded over devices (FSDP2)."""
    return accelerator.distributed_type == DistributedType.FSDP


def prepare_model(accelerator: Accelerator, reranker: Reranker, optimizer: torch.optim.Optimizer) -> tuple[Any, Any]:
    """Return model and optimizer prepared by Accelerate; `reranker.model` stays the same object, sharded or not."""
    accelerator.free_memory()  # the model of an earlier round would be saved and loaded with this one
    scoring: Any = ScoringModel(reranker)
    if not is_sharded(accelerator):
        return accelerator.prepare(scoring, optimizer)
    scoring._no_split_modules = reranker.model._no_split_modules  # the units of sharding
    # Weights are communicated in float32, and autocast sets the precision of each operation, as under DDP.
    plugin: Any = accelerator.state.fsdp_plugin
    plugin.mixed_precision_policy = MixedPrecisionPolicy()
    model, prepared = accelerator.prepare(scoring, optimizer)
    model.set_reshard_after_forward(False)
    return model, prepared


@contextmanager
def no_gradient_sync(accelerator: Accelerator, model: Any) -> Iterator[None]:
    """Within the context accumulate gradients without synchronisation, and keep gathered weights."""
    if is_sharded(accelerator):
        model.set_reshard_after_backward(False)
    with accelerator.no_sync(model):
        yield
    if is_sharded(accelerator):
        model.set_reshard_after_backward(True)


def sync_gradients(accelerator: Accelerator, model: Any, batch: Batch) -> None:
    """Synchronise the gradients of all processes by a backward pass of one batch with weight 0."""
    if accelerator.distributed_type != DistributedType.NO:
        accelerator.backward(model(Batches([batch])).sum() * 0.0)


def as_plain(number: Tensor) -> Tensor:
    """Return a number that is sharded over devices (the norm of gradients under FSDP2) as a plain float32 tensor."""
    return (number.full_tensor() if isinstance(number, DTensor) else number).float()


@contextmanager
def unsharded(accelerator: Accelerator, model: Any) -> Iterator[None]:
    """Within the context `reranker.model` has all weights; every process enters it, after the first step."""
    if not is_sharded(accelerator):
        yield
        return
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.unshard()
    yield
    model.reset_iter_state()


def full_weights(accelerator: Accelerator, model: Any) -> dict[str, Tensor] | None:
    """Return all weights of a sharded `reranker.model` by name, on the main process; None if it is not sharded."""
    if not is_sharded(accelerator):
        return None
    weights: Any = accelerator.get_state_dict(model)
    return {name.removeprefix("model."): weight for name, weight in weights.items()}
