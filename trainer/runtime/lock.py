"""One run at a time in a folder: an advisory lock that the kernel releases when its holder ends, however it ends."""

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

WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)  # what file systems without locks answer


@contextmanager
def hold(path: Path, doing: str) -> Iterator[None]:
    """Hold the lock file `path` while the block runs; the file names the holder.

    Raises RunError where another process holds it, or where the folder cannot be made or written to. `doing` says in
    messages what the lock protects, e.g. "run". The file stays: deleting it would let two processes lock two files.
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
                f"{path.parent}: another {doing} is using it ({_holder(path)}); wait for it, or stop it"
            ) from None
        except OSError as error:
            if error.errno not in WITHOUT_LOCKS:
                raise RunError(f"{path}: cannot be locked ({one_line(error)})") from None
            console.warn(doing, f"the file system of {path.parent} has no locks; do not start two runs in it")
        _name_holder(file)
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


def _name_holder(file: TextIO) -> None:
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
    """Return the holder in words; it may not have written its name yet."""
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
        return f"process {holder['pid']} on {holder['host']}, started {holder['started']}: {holder['command']}"
    except (OSError, ValueError, KeyError, TypeError):
        return f"its name is not in {path} yet"
