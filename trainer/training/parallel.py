"""One device, several that hold the model each (DDP), or several that hold a share of it (FSDP2): all that differs.

Each process makes as many passes as its groups and its memory need, and gradients add up on it; one more pass, the same
on all processes, exchanges them. FSDP would gather weights and hand gradients out in every layer of every pass; here
weights are gathered in the first pass of a step and stay to its end. Between steps a device holds its share of the
weights and of AdamW's moments; in a step, weights and gradients whole, like under DDP.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from torch import Tensor
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy

from trainer.model import Batches, Reranker, ScoringModel
from trainer.model.packing import Batch


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether every device holds a share of the model only."""
    return accelerator.distributed_type == DistributedType.FSDP


def spread(accelerator: Accelerator, reranker: Reranker, optimizer: torch.optim.Optimizer) -> tuple[Any, Any]:
    """Model and optimizer for the devices; `reranker.model` stays the same object, sharded or not."""
    accelerator.free_memory()  # an earlier round's model would be saved with ours, and loaded in its place
    scoring: Any = ScoringModel(reranker)
    if not is_sharded(accelerator):
        return accelerator.prepare(scoring, optimizer)
    scoring._no_split_modules = reranker.model._no_split_modules  # the layers that are gathered one by one
    # Weights are exchanged as they are, and autocast decides what is computed in half precision, as under DDP.
    plugin: Any = accelerator.state.fsdp_plugin
    plugin.mixed_precision_policy = MixedPrecisionPolicy()
    model, prepared = accelerator.prepare(scoring, optimizer)
    model.set_reshard_after_forward(False)
    return model, prepared


@contextmanager
def no_exchange(accelerator: Accelerator, model: Any) -> Iterator[None]:
    """For the passes over a step's groups: gradients add up, and gathered weights stay."""
    if is_sharded(accelerator):
        model.set_reshard_after_backward(False)
    with accelerator.no_sync(model):
        yield
    if is_sharded(accelerator):
        model.set_reshard_after_backward(True)


def exchange(accelerator: Accelerator, model: Any, batch: Batch) -> None:
    """The last pass of a step of several processes: of one batch, which adds nothing to the gradients."""
    if accelerator.distributed_type != DistributedType.NO:
        accelerator.backward(model(Batches([batch])).sum() * 0.0)


@contextmanager
def whole(accelerator: Accelerator, model: Any) -> Iterator[None]:
    """`reranker.model` can be used by itself in here; all processes enter, after the first step."""
    if not is_sharded(accelerator):
        yield
        return
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.unshard()
    yield
    model.reset_iter_state()


def whole_weights(accelerator: Accelerator, model: Any) -> dict[str, Tensor] | None:
    """All weights of a sharded `reranker.model`, on the main process, by its names; None where it has them itself."""
    if not is_sharded(accelerator):
        return None
    weights: Any = accelerator.get_state_dict(model)
    return {name.removeprefix("model."): weight for name, weight in weights.items()}
