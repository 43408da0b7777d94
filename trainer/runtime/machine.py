"""Errors of the machine in one sentence: a full disk, a missing permission, a path that is too long, too little memory.

Libraries raise them in many disguises: an OSError with or without a path, a RuntimeError of torch that names a line of
C++, an error of safetensors or Arrow whose text ends with the number. `explained` is the one place that knows them.
Every other exception is left as it is, and so is shown with its traceback.
"""

from __future__ import annotations

import errno
import inspect
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

from trainer.errors import MachineError, TrainerError, one_line

P = ParamSpec("P")
T = TypeVar("T")

_OTHER_FOLDER = "choose another folder with --runs"
_ROOM = "free some room, then the same command goes on from what was finished"
SENTENCES = {  # what is wrong, and what to do
    errno.ENOSPC: f"the disk is full; {_ROOM}",
    errno.EFBIG: "the file would be larger than the limit of this shell or file system; raise it (ulimit -f)",
    errno.EROFS: f"the file system is read-only; {_OTHER_FOLDER}",
    errno.EACCES: f"permission denied; look at its owner and mode (ls -ld), or {_OTHER_FOLDER}",
    errno.EPERM: f"not permitted; look at its owner, mode and attributes (ls -ld, lsattr), or {_OTHER_FOLDER}",
    errno.ENAMETOOLONG: "the path is too long; choose a shorter name or folder",
    errno.ENOTDIR: "a file stands where a folder is needed; move it away, or choose another folder",
    errno.EISDIR: "a folder stands where a file is needed; move it away, or name a file",
    errno.ELOOP: "its symbolic links lead in a circle; mend them",
    errno.EMFILE: "too many open files; raise the limit (ulimit -n 65536)",
    errno.ENFILE: "too many open files on this machine; end other programs",
    errno.ENOMEM: "memory ran out; end other programs, or lower train.tokens_per_pass and the max_length keys",
    errno.EIO: "the disk failed to read or write; look at the system's log (dmesg)",
    errno.EAGAIN: "no further thread or process can be started; raise the limit (ulimit -u), or set OMP_NUM_THREADS=1",
}
for _name, _sentence in {
    "EDQUOT": f"the disk quota is used up; {_ROOM}",
    "ESTALE": "the network file system lost the file; mount it again, then the same command goes on",
    "EREMOTEIO": "the network file system failed; mount it again, then the same command goes on",
}.items():
    if hasattr(errno, _name):  # Windows has not all of them
        SENTENCES[getattr(errno, _name)] = _sentence
CUT_SHORT = -1  # no number of the system: a library that only says that it wrote less than it should
SENTENCES[CUT_SHORT] = (
    f"a file could not be written whole: the disk or a quota is full, or ulimit -f is reached; {_ROOM}"
)
EXHAUSTED = {CUT_SHORT, errno.ENOSPC, errno.EFBIG, errno.ENOMEM, getattr(errno, "EDQUOT", errno.ENOSPC)}

_NUMBER = re.compile(r"\[errno (\d+)\]|\(os error (\d+)\)", re.IGNORECASE)  # Python's and Arrow's; Rust's
_DISGUISES = [  # texts that come without a number
    (re.compile(r"no space left on device|disk is full", re.IGNORECASE), errno.ENOSPC),
    (re.compile(r"PytorchStreamWriter|inline_container.*unexpected pos|file write failed|iostream error"), CUT_SHORT),
    (re.compile(r"^\d+ requested and \d+ written$"), CUT_SHORT),  # NumPy
    (re.compile(r"can't allocate memory|cannot allocate memory|std::bad_alloc|out of memory", re.I), errno.ENOMEM),
    (re.compile(r"failed to map segment from shared object"), errno.ENOMEM),  # an import
    (re.compile(r"can't start new thread"), errno.EAGAIN),
]


def explained(function: Callable[P, T]) -> Callable[P, T]:
    """Decorate `function` so that errors of the machine leave it as a MachineError.

    Where the function has a parameter `runs`, that folder is named by errors that come without a path.
    """
    signature = inspect.signature(function)

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except TrainerError:
            raise
        except Exception as error:
            runs = signature.bind(*args, **kwargs).arguments.get("runs") or "runs"
            if (fault := explain(error, Path(runs))) is None:
                raise
            raise MachineError(fault) from error

    return call


def explain(error: BaseException, runs: Path) -> str | None:
    """Return the sentence for an error of the machine, None for any other."""
    for cause, certain in _causes(error):
        number = _number(cause)
        if number in SENTENCES and (certain or number in EXHAUSTED):
            return f"{_place(cause, number, runs)}: {SENTENCES[number]}"
    return None


def is_exhausted(error: BaseException) -> bool:
    """Return whether room or memory ran out, so that what was at work when it did is not to blame."""
    return any(_number(cause) in EXHAUSTED for cause, _ in _causes(error))


def folder_faults(runs: Path, name: str) -> list[str]:
    """Return what keeps a run from writing to `runs/name` and to the caches beside it; nothing is written.

    Raises OSError where a folder cannot even be looked at.
    """
    run = runs / name
    faults = [_folder_fault(folder) for folder in (run, runs / ".embeddings", runs / ".teachers")]
    if not faults[0] and run.is_dir():
        faults += [_folder_fault(folder) for folder in run.iterdir() if folder.is_dir()]
    return list(dict.fromkeys(fault for fault in faults if fault))


def _folder_fault(folder: Path) -> str:
    """Return why nothing can be written to a folder that is there or is still to be made; empty where it can."""
    existing = _existing(folder)
    if existing.is_symlink() and not existing.exists():
        return f"{existing}: a link to {os.readlink(existing)}, which is not there; make that folder or remove the link"
    if not existing.is_dir():
        return f"{existing}: {SENTENCES[errno.ENOTDIR]}"
    if not os.access(existing, os.W_OK | os.X_OK):
        read_only = hasattr(os, "statvfs") and os.statvfs(existing).f_flag & os.ST_RDONLY
        return f"{existing}: {SENTENCES[errno.EROFS if read_only else errno.EACCES]}"
    return ""


def _existing(path: Path) -> Path:
    """The path itself, or the nearest folder above it that is there; a dangling link counts as there."""
    while not os.path.lexists(path) and path != path.parent:
        path = path.parent
    return path


def _causes(error: BaseException) -> Iterator[tuple[BaseException, bool]]:
    """The error and those behind it, each with whether it certainly is the cause.

    What was raised while another error was handled may be a fault of its own. After a full disk or a lack of memory it
    is not: then even closing a file fails.
    """
    seen: set[int] = set()
    certain = True
    while id(error) not in seen:
        yield error, certain
        seen.add(id(error))
        certain = certain and error.__cause__ is not None
        error = error.__cause__ or error.__context__ or error


def _number(error: BaseException) -> int:
    """The operating system's number of an error, 0 where it has none."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return errno.ENOMEM
    if isinstance(error, OSError) and error.errno:
        return error.errno
    own = type(error).__module__ == "builtins" and not isinstance(error, OSError | RuntimeError | ImportError)
    if own and type(error) is not Exception:
        return 0  # a ValueError or KeyError that quotes such a text
    text = one_line(error)
    if found := _NUMBER.search(text):
        return int(found[1] or found[2])
    return next((number for pattern, number in _DISGUISES if pattern.search(text)), 0)


def _place(error: BaseException, number: int, runs: Path) -> str:
    """The path that the error names, else the fullest disk that a run writes to, else the run folder."""
    named = getattr(error, "filename", None)
    if isinstance(named, str | bytes | os.PathLike):
        path = os.fsdecode(named)
        return path if len(path) <= 200 else f"{path[:100]}...{path[-60:]}"
    if number == errno.ENOMEM:
        return "memory"
    if number not in (errno.ENOSPC, CUT_SHORT):
        return str(runs)
    free = {folder: shutil.disk_usage(_existing(folder)).free for folder in (runs, Path(tempfile.gettempdir()))}
    fullest = min(free, key=lambda folder: free[folder])
    return f"{fullest} ({free[fullest] / 1e6:,.0f} MB free)"
