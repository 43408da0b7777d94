"""The end of a process that did not come by itself: Ctrl-C, or the loss of another process of the same run.

When a process is lost, the others get a network error, or wait in an exchange that never ends, and the launcher ends
them with SIGTERM. The first of them prints the message for all; the launcher's own report says which process it was.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType
from typing import Any, NoReturn

LOST = (
    "another process of this run was lost, or its launcher was stopped (see its report); "
    "the same command goes on from the last checkpoint"
)

STOPPED = "stopped; the same command goes on from the last checkpoint"
INTERRUPTED = 130  # exit code: 128 and the number of SIGINT


@contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C end the program with one line and code 130, wherever it is, also inside of an import.

    Python turns a KeyboardInterrupt in the middle of an import into another error, and loses one in a destructor. A
    second Ctrl-C ends at once. Where the parent asked to ignore the signal (nohup), it stays ignored.
    """
    before, hook = signal.getsignal(signal.SIGINT), sys.unraisablehook
    ours = before not in (signal.SIG_IGN, None) and threading.current_thread() is threading.main_thread()
    if ours:
        signal.signal(signal.SIGINT, _interrupt)
        sys.unraisablehook = _lost_interrupt
    try:
        yield
    except BaseException as error:
        code = error.code if isinstance(error, SystemExit) else None
        interrupted = isinstance(error, KeyboardInterrupt) or code == INTERRUPTED
        if not interrupted and not (ours and signal.getsignal(signal.SIGINT) is stop_at_once):
            raise
        from trainer.runtime import console

        console.error(STOPPED)
        raise SystemExit(INTERRUPTED) from None
    finally:
        if ours:
            signal.signal(signal.SIGINT, before)
            sys.unraisablehook = hook


def stop_at_once(*_: Any) -> NoReturn:
    """End without any clean-up; whatever is on disk is complete at any moment."""
    show_cursor = "\x1b[?25h" if os.isatty(2) else ""  # a progress bar may have hidden it
    os.write(2, f"{show_cursor}{STOPPED}\n".encode())
    os._exit(INTERRUPTED)


def _interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
    signal.signal(signal.SIGINT, stop_at_once)
    raise KeyboardInterrupt


def _lost_interrupt(unraisable: sys.UnraisableHookArgs) -> None:
    if isinstance(unraisable.exc_value, KeyboardInterrupt):
        stop_at_once()
    sys.__unraisablehook__(unraisable)


def several() -> bool:
    """Whether this process is one of several of the same run."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_main() -> bool:
    """Return whether this process is the main one of its run, which alone writes and prints."""
    return os.environ.get("RANK", "0") == "0"


def watch() -> None:
    """End promptly and with a message on SIGTERM, also while torch waits for a process that is no more.

    Python would run a handler only after that; what wakes up a thread is written at once.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=_leave_on_sigterm, args=(reading,), daemon=True).start()


def is_loss(error: Exception) -> bool:
    """Whether an error tells that another process was lost, and nothing of this one."""
    if not several() or not isinstance(error, RuntimeError):
        return False
    from torch.distributed import DistError

    return isinstance(error, DistError) or "gloo" in str(error)


def leave() -> NoReturn:
    """End at once: what would be cleaned up otherwise waits for the lost process."""
    from trainer.runtime import console

    if speaks():
        console.console.quiet = False
        console.error(LOST)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(2)


def speaks() -> bool:
    """Whether this process is the first of its run to tell of its end; before torch is there, the main one tells."""

    if not several() or "torch" not in sys.modules:
        return is_main()
    from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

    try:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = TCPStore(address, port, is_master=False, timeout=timedelta(seconds=2))
        return store.add(f"domain-reranker/ended/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", 1) == 1
    except RuntimeError:  # it went with the process that was lost
        return True


def _leave_on_sigterm(reading: int) -> None:
    while signal.SIGTERM not in os.read(reading, 1):
        pass
    leave()
