"""An advisory lock that allows one run at a time in a folder; the kernel releases it whenever its holder ends."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TextIO

from trainer.errors import RunError, one_line
from trainer.runtime import console

WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)  # error numbers of file systems without locks


@contextmanager
def hold(path: Path, doing: str) -> Iterator[None]:
    """Hold the lock on the file `path` while the block runs; the file names the holder.

    `doing` is the protected work in messages, e.g. "run". The file is never deleted, since two processes could then
    lock two different files. Raises RunError if another process holds the lock, or if the folder cannot be created or
    written to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise RunError(
            f"{path.parent}: cannot be used as a folder for results ({error.strerror}: {error.filename}); "
            "move away what is there, or choose another folder with --runs"
        ) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(
                f"{path.parent}: another {doing} is using it ({_holder(path)}); wait until it ends, or stop it"
            ) from None
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                raise RunError(f"{path}: cannot be locked ({one_line(error)})") from None
            console.warn(doing, f"the file system of {path.parent} has no locks; do not start two runs in it")
        _write_holder(file)
        try:
            yield
        finally:
            file.truncate(0)


def is_held(path: Path) -> bool:
    """Return whether a process holds the lock file `path`; nothing is written."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no such file, or a file system without locks
        return False
    return False


def _write_holder(file: TextIO) -> None:
    holder = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": " ".join(sys.argv),
    }
    file.truncate(0)
    file.write(json.dumps(holder, ensure_ascii=False) + "\n")
    file.flush()


def _holder(path: Path) -> str:
    """Return a description of the holder for a message; it may not have written its record yet."""
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
        return f"process {holder['pid']} on {holder['host']}, started {holder['started']}: {holder['command']}"
    except (OSError, ValueError, KeyError, TypeError):
        return f"{path} does not name it yet"
