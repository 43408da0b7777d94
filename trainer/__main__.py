"""The entry points: `train RECIPE` (`python -m trainer RECIPE` for launchers such as torchrun), and `reranker`.

What has to be set before anything slow is imported is set here: the handler for Ctrl-C, and how OpenMP waits.
"""

import os
import signal

from trainer.runtime import processes

# GNU's OpenMP, which torch has on Linux, lets threads look 2,000 times for work and then sleep; others at once.
WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "2000"}


def train() -> None:
    """Run the command `train`."""
    _before_importing()
    from trainer.commands.cli import train_command

    train_command()


def reranker() -> None:
    """Run the command `reranker`."""
    _before_importing()
    from trainer.commands.cli import reranker_command

    reranker_command()


def _before_importing() -> None:
    """Handle Ctrl-C, and let waiting OpenMP threads sleep soon, unless the environment says how they wait.

    By default they keep their cores busy while they wait. Beside another program that takes a core, training with two
    threads is 1.5 times as fast if they sleep soon (docs/benchmarks.md). OpenMP reads this when torch is imported.
    """
    if not {*WAITING, "KMP_BLOCKTIME"} & os.environ.keys():
        os.environ.update(WAITING)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, processes.stop_at_once)


if __name__ == "__main__":
    train()
