"""Devices and processes: what the launcher was told, and what the recipe asks of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from trainer.errors import RunError, TrainerError
from trainer.runtime import processes

if TYPE_CHECKING:
    from accelerate import Accelerator

    from trainer.runtime.precision import Precision

Result = TypeVar("Result")


def on_main(accelerator: Accelerator, work: Callable[[], Result]) -> Result:
    """Return on every process what `work` returns on the main one, the only process that carries it out.

    So that processes never disagree about what lies on disk. A TrainerError is raised on every process.
    """
    from accelerate.utils import broadcast_object_list

    if accelerator.num_processes == 1:
        return work()
    outcome: list[Any] = [None, None]
    if processes.is_main():
        try:
            outcome[0] = work()
        except TrainerError as error:
            outcome[1] = error
    broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def start_accelerator(precision: Precision | Literal["auto"]) -> Accelerator:
    """Return Accelerate for the devices here.

    Precision is the `Reranker`'s own affair; of Accelerate fp16 only takes the scaling of gradients. Raises RecipeError
    or RunError where the devices cannot do what is asked of them.
    """
    import datasets
    import torch
    import transformers
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, is_initialized
    from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

    from trainer.runtime.precision import best_device, resolve

    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    cuda = torch.cuda.is_available()
    check_launch(os.environ, cuda)
    # On Hopper torch would take cuDNN for padded batches with a mask, which plans anew for every shape, and whose
    # gradients are no numbers where a row's scores are all very low (torch 2.13, PyTorch issue 196678).
    torch.backends.cuda.enable_cudnn_sdp(False)
    device = torch.device(best_device())
    mixed_precision = "fp16" if resolve(precision, device) == "fp16" else "no"
    if is_initialized() and AcceleratorState().mixed_precision != mixed_precision:
        AcceleratorState._reset_state()  # another library trained in this process, in another precision
    return Accelerator(
        cpu=device.type == "cpu",
        mixed_precision=mixed_precision,
        kwargs_handlers=[
            # Buffers are constants here; to exchange them, all would wait for one that does a step again.
            DistributedDataParallelKwargs(broadcast_buffers=False),
            InitProcessGroupKwargs(timeout=timedelta(hours=12)),  # the others wait while one retrieves
        ],
    )


def check_launch(told: Mapping[str, str], cuda: bool) -> None:
    """Judge what the launcher was told (its environment); raises RunError with all that no run here can do."""
    if told.get("ACCELERATE_USE_FSDP", "false") != "true":
        return
    faults = []
    if not cuda:
        faults.append("launch: distributed_type: FSDP needs CUDA GPUs, and there is none here; start without it")
    if told.get("FSDP_VERSION", "1") != "2":
        faults.append(
            f"launch: fsdp_version: {told.get('FSDP_VERSION', '1')}, but only 2 can be trained with; set it to 2"
        )
    if told.get("FSDP_CPU_RAM_EFFICIENT_LOADING", "false") == "true":
        faults.append(
            "launch: fsdp_cpu_ram_efficient_loading: true would leave all processes but the first with empty models "
            "wherever one is not trained but used; set it to false"
        )
    if faults:
        raise RunError(faults)
