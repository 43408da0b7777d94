"""The entry points `train` and `reranker`, and the exit codes of both.

0    done
1    a bug in this program, with its traceback
2    an error that the user can fix: one message, no traceback
3    evaluated, and not shown to be better than the baselines
130  stopped by Ctrl-C
141  the reader of the output has exited (`| head`)
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from trainer.commands import recipe_commands, run_commands, scoring_commands
from trainer.commands.apps import reranker_app, train_app
from trainer.errors import TrainerError

# Each of these modules adds its commands to the apps.
__all__ = ["recipe_commands", "reranker_app", "run_commands", "scoring_commands", "train_app"]


def train_command() -> None:
    """Run the command `train`, the same as `python -m trainer`."""
    _guarded(lambda: train_app(prog_name="train"))


def reranker_command() -> None:
    """Run the command `reranker`."""
    _guarded(lambda: reranker_app(prog_name="reranker"))


def _guarded(app: Callable[[], None]) -> None:
    """Run an app; print an error that the user can fix without a traceback."""
    from trainer.runtime import console, processes

    if not processes.is_main():
        console.quiet()
    if processes.several():
        processes.watch()
    with processes.interruptible():
        try:
            app()
        except SystemExit as end:  # so typer ends a command
            if not end.code:
                processes.end(0)
            raise
        except TrainerError as error:
            console.console.quiet = not processes.is_first_to_end()
            for fault in error.faults:
                console.error(fault)
            processes.end(error.exit_code)
            sys.exit(error.exit_code)
        except RuntimeError as error:
            if not processes.is_loss(error):
                raise
            processes.leave()
