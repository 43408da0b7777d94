"""Early ends of a process: Ctrl-C, or the loss of another process of the same run.

When a process is lost, the others get a network error, or hang in a collective operation until the launcher sends them
SIGTERM. The first of them prints the message for all; the launcher's own report names the lost process.
"""

from __future__ import annotations

import atexit
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
    "run the same command again to resume from the last checkpoint"
)

STOPPED = "stopped; run the same command again to resume from the last checkpoint"
INTERRUPTED = 130  # exit code: 128 + SIGINT (2)


@contextmanager
def interruptible() -> Iterator[None]:
    """Make Ctrl-C end the program with a one-line message and exit code 130 at any point, even during an import.

    Python turns a KeyboardInterrupt during an import into another error, and ignores one in a destructor. A second
    Ctrl-C ends the program at once. If the parent process ignores the signal (nohup), it remains ignored.
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
    """End the process without any clean-up; files are written atomically, so that none is left incomplete."""
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


def end(code: int) -> None:
    """End this process with an exit code, if it is connected to others; do nothing otherwise.

    Threads of a connection, which models keep open also after its end, can abort an interpreter that shuts down, after
    a run that succeeded. So the functions of atexit are called, but the interpreter does not shut down.
    """
    torch = sys.modules.get("torch")
    if not several() or torch is None or not torch.distributed.is_initialized():
        return
    if code == 0:  # after an error another process may be lost, which this would wait for
        torch.distributed.destroy_process_group()
    atexit._run_exitfuncs()
    _exit(code)


def several() -> bool:
    """Return True if this run has several processes."""
    return count() > 1


def count() -> int:
    """Return the number of processes of this run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Return True in the main process of a run, the only one that writes files and prints."""
    return os.environ.get("RANK", "0") == "0"


def watch() -> None:
    """Install a handler that ends the process with a message on SIGTERM, even while torch waits for a lost process.

    Python runs a signal handler only when such a wait returns, but writes to the wake-up file descriptor at once,
    which a thread reads.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=_leave_on_sigterm, args=(reading,), daemon=True).start()


def is_loss(error: Exception) -> bool:
    """Return True if an error was caused by the loss of another process of the run."""
    if not several() or not isinstance(error, RuntimeError):
        return False
    from torch.distributed import DistError

    return isinstance(error, DistError) or "gloo" in str(error)


def leave() -> NoReturn:
    """End the process at once; the usual clean-up would wait for the lost process."""
    from trainer.runtime import console

    if is_first_to_end():
        console.console.quiet = False
        console.error(LOST)
    _exit(2)


def _exit(code: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def is_first_to_end() -> bool:
    """Return True in the first process of a run that ends early, which prints the message for all.

    Before torch is imported that is the main process.
    """
    if not several() or "torch" not in sys.modules:
        return is_main()
    from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

    try:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = TCPStore(address, port, is_master=False, timeout=timedelta(seconds=2))
        return store.add(f"domain-reranker/ended/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", 1) == 1
    except RuntimeError:  # the store was in the lost process
        return True


def _leave_on_sigterm(reading: int) -> None:
    while signal.SIGTERM not in os.read(reading, 1):
        pass
    leave()
