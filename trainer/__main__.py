"""The entry points: `train RECIPE` (`python -m trainer RECIPE` for launchers such as torchrun), and `reranker`.

The handler for Ctrl-C is installed before anything slow is imported.
"""

import signal

from trainer.runtime import processes


def train() -> None:
    """Run the command `train`."""
    _stop_quietly_while_importing()
    from trainer.commands.cli import train_command

    train_command()


def reranker() -> None:
    """Run the command `reranker`."""
    _stop_quietly_while_importing()
    from trainer.commands.cli import reranker_command

    reranker_command()


def _stop_quietly_while_importing() -> None:
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, processes.stop_at_once)


if __name__ == "__main__":
    train()
