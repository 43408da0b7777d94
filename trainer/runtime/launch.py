"""Devices and processes: what the launcher was told, and what the recipe asks of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from trainer.errors import RunError, TrainerError, one_line
from trainer.runtime import processes

if TYPE_CHECKING:
    from accelerate import Accelerator

    from trainer.runtime.precision import Precision

Result = TypeVar("Result")
PATIENCE = timedelta(hours=12)  # for the others while one retrieves


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


@contextmanager
def sharing_faults() -> Iterator[None]:
    """Let an error in the block end all processes of a run, also those that still wait for this one to begin.

    A process that ended by itself would leave those on other machines waiting, as no launcher watches another's.
    """
    try:
        yield
    except Exception as error:
        if processes.several() and not _have_met() and not processes.is_loss(error):
            told = f"launch: another process failed ({type(error).__name__}: {one_line(error)}); see its own output"
            _meet(error if isinstance(error, TrainerError) else RunError(told))
        raise


def _have_met() -> bool:
    import torch

    return torch.distributed.is_initialized()


def _meet(fault: TrainerError | None) -> list[TrainerError]:
    """Wait until all processes of the run are here; return the faults that they bring along."""
    from accelerate import PartialState
    from accelerate.utils import gather_object, parse_flag_from_env

    from trainer.runtime.precision import best_device

    PartialState(cpu=best_device() == "cpu" or parse_flag_from_env("ACCELERATE_USE_CPU"), timeout=PATIENCE)
    return [found for found in gather_object([fault]) if found is not None]


def start_accelerator(precision: Precision | Literal["auto"]) -> Accelerator:
    """Return Accelerate for the devices here, once all processes are ready.

    Precision is the `Reranker`'s own affair; of Accelerate fp16 only takes the scaling of gradients. Raises RecipeError
    or RunError where the devices cannot do what is asked of them, and what another process raised on its way here.
    """
    import datasets
    import torch
    import transformers
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, is_initialized
    from accelerate.utils import DistributedDataParallelKwargs

    from trainer.runtime.precision import best_device, resolve

    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    check_launch(os.environ, torch.cuda.is_available())
    # On Hopper torch would take cuDNN for padded batches with a mask, which plans anew for every shape, and whose
    # gradients are no numbers where a row's scores are all very low (torch 2.13, PyTorch issue 196678).
    torch.backends.cuda.enable_cudnn_sdp(False)
    mixed_precision = "fp16" if resolve(precision, torch.device(best_device())) == "fp16" else "no"
    if is_initialized() and AcceleratorState().mixed_precision != mixed_precision:
        AcceleratorState._reset_state()  # another library trained in this process, in another precision
    if processes.several() and (faults := _meet(None)):
        raise faults[0]
    # Buffers are constants here; to exchange them, all would wait for one that does a step again.
    buffers = DistributedDataParallelKwargs(broadcast_buffers=False)
    return Accelerator(cpu=best_device() == "cpu", mixed_precision=mixed_precision, kwargs_handlers=[buffers])


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
