"""One run in several processes: what is said, once, when one of them is lost.

The others then get an error of the network's, or wait in an exchange that never ends, and the launcher ends them with
SIGTERM. Whoever comes first speaks for all; which process it was and why stands in the launcher's own report.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from datetime import timedelta
from typing import NoReturn

from trainer import console

LOST = (
    "another process of this run was lost, or its launcher was stopped (see its report); "
    "the same command goes on from the last checkpoint"
)


def several() -> bool:
    """Whether this process is one of several of the same run."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def watch() -> None:
    """End promptly and with a message on SIGTERM, also while torch waits for a process that is no more.

    Python would run a handler only after that; what wakes up a thread is written at once.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=_leave_on_sigterm, args=(reading,), daemon=True).start()


def is_loss(error: RuntimeError) -> bool:
    """Whether an error tells that another process was lost, and nothing of this one."""
    if not several():
        return False
    from torch.distributed import DistError

    return isinstance(error, DistError) or "gloo" in str(error)


def leave() -> NoReturn:
    """End at once: what would be cleaned up otherwise waits for the lost process."""
    if speaks():
        console.console.quiet = False
        console.error(LOST)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(2)


def speaks() -> bool:
    """Whether this process is the first of its run to tell of its end; before torch is there, the main one tells."""
    if not several() or "torch" not in sys.modules:
        return not console.console.quiet
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
