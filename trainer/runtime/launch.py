"""Devices and processes: the Accelerator for the launcher's settings and the recipe's precision."""

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
TIMEOUT = timedelta(hours=12)  # time limit of collective operations: other processes wait while the main one retrieves


def on_main(accelerator: Accelerator, work: Callable[[], Result]) -> Result:
    """Run `work` on the main process only, and return its result on every process.

    So processes never disagree about the files on disk. A TrainerError is raised on every process.
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
def sharing_errors() -> Iterator[None]:
    """Make an error in the block end all processes of a run, even those that still wait for this one to start.

    Otherwise processes on other machines would keep waiting, since a launcher only watches its own processes.
    """
    try:
        yield
    except Exception as error:
        if processes.several() and not _is_connected() and not processes.is_loss(error):
            message = f"launch: another process failed ({type(error).__name__}: {one_line(error)}); see its own output"
            _gather_errors(error if isinstance(error, TrainerError) else RunError(message))
        raise


def _is_connected() -> bool:
    import torch

    return torch.distributed.is_initialized()


def _gather_errors(error: TrainerError | None) -> list[TrainerError]:
    """Wait for all processes of the run, and return the errors that any of them passes."""
    from accelerate import PartialState
    from accelerate.utils import gather_object, parse_flag_from_env

    from trainer.runtime.precision import best_device

    PartialState(cpu=best_device() == "cpu" or parse_flag_from_env("ACCELERATE_USE_CPU"), timeout=TIMEOUT)
    return [each for each in gather_object([error]) if each is not None]


def start_accelerator(precision: Precision | Literal["auto"]) -> Accelerator:
    """Return an Accelerator for the available devices, once all processes are ready.

    The `Reranker` applies the precision itself; with fp16 Accelerate only scales the gradients. Raises RecipeError
    or RunError if the devices do not support the precision or the launcher's settings, and errors that other processes
    raised before they were ready.
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
    # On Hopper torch would choose cuDNN attention for padded batches with a mask. It makes a new plan for every shape,
    # and its gradients are NaN if all scores of a row are very low (torch 2.13, PyTorch issue 196678).
    torch.backends.cuda.enable_cudnn_sdp(False)
    mixed_precision = "fp16" if resolve(precision, torch.device(best_device())) == "fp16" else "no"
    if is_initialized() and AcceleratorState().mixed_precision != mixed_precision:
        AcceleratorState._reset_state()  # another library trained in this process with another precision
    if processes.several() and (errors := _gather_errors(None)):
        raise errors[0]
    # Buffers are constants here. Broadcasting them would make all processes wait for one that repeats a step.
    buffers = DistributedDataParallelKwargs(broadcast_buffers=False)
    return Accelerator(cpu=best_device() == "cpu", mixed_precision=mixed_precision, kwargs_handlers=[buffers])


def check_launch(environment: Mapping[str, str], cuda: bool) -> None:
    """Check the launcher's settings, given as environment variables; raises RunError with all unsupported ones."""
    if environment.get("ACCELERATE_USE_FSDP", "false") != "true":
        return
    problems = []
    if not cuda:
        problems.append("launch: distributed_type: FSDP needs CUDA GPUs, and there is none here; start without it")
    fsdp_version = environment.get("FSDP_VERSION", "1")
    if fsdp_version != "2":
        problems.append(f"launch: fsdp_version: {fsdp_version}, but only version 2 is supported; set it to 2")
    if environment.get("FSDP_CPU_RAM_EFFICIENT_LOADING", "false") == "true":
        problems.append(
            "launch: fsdp_cpu_ram_efficient_loading: true loads weights on the first process only, so models that are "
            "used but not trained would be empty on all others; set it to false"
        )
    if problems:
        raise RunError(problems)
