"""One-sentence messages for errors of the machine: a full disk, a missing permission, a long path, too little memory.

Libraries raise them in many forms: an OSError with or without a path, a RuntimeError of torch that names a line of C++,
an error of safetensors or Arrow whose text ends with the error number. Only `explained` translates them. Every other
exception is passed on unchanged and shown with its traceback.
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

EMBEDDINGS, TEACHERS, ENDPOINTS = ".embeddings", ".teachers", ".endpoints"  # caches in the folder of all runs
P = ParamSpec("P")
T = TypeVar("T")

_OTHER_FOLDER = "choose another folder with --runs"
_FREE_SPACE = "free some space, then run the same command again to resume"
MESSAGES = {  # the problem and its remedy, by error number
    errno.ENOSPC: f"the disk is full; {_FREE_SPACE}",
    errno.EFBIG: "the file would be larger than the limit of this shell or file system; raise it (ulimit -f)",
    errno.EROFS: f"the file system is read-only; {_OTHER_FOLDER}",
    errno.EACCES: f"permission denied; check its owner and mode (ls -ld), or {_OTHER_FOLDER}",
    errno.EPERM: f"not permitted; check its owner, mode and attributes (ls -ld, lsattr), or {_OTHER_FOLDER}",
    errno.ENAMETOOLONG: "the path is too long; choose a shorter name or folder",
    errno.ENOTDIR: "a file exists where a folder is needed; move it away, or choose another folder",
    errno.EISDIR: "a folder exists where a file is needed; move it away, or name a file",
    errno.ELOOP: "its symbolic links form a loop; correct them",
    errno.EMFILE: "too many open files; raise the limit (ulimit -n 65536)",
    errno.ENFILE: "too many open files on this machine; end other programs",
    errno.ENOMEM: "memory ran out; end other programs, or lower train.tokens_per_pass and the max_length keys",
    errno.EIO: "the disk failed to read or write; see the system's log (dmesg)",
    errno.EAGAIN: "no further thread or process can be started; raise the limit (ulimit -u), or set OMP_NUM_THREADS=1",
}
for _name, _sentence in {
    "EDQUOT": f"the disk quota is used up; {_FREE_SPACE}",
    "ESTALE": "the network file system lost the file; mount it again, then run the same command again",
    "EREMOTEIO": "the network file system failed; mount it again, then run the same command again",
}.items():
    if hasattr(errno, _name):  # Windows lacks some of them
        MESSAGES[getattr(errno, _name)] = _sentence
CUT_SHORT = -1  # not a number of the system: a library reported only that it wrote too few bytes
MESSAGES[CUT_SHORT] = (
    f"a file could not be written completely: the disk or a quota is full, or ulimit -f is reached; {_FREE_SPACE}"
)
EXHAUSTED = {CUT_SHORT, errno.ENOSPC, errno.EFBIG, errno.ENOMEM, getattr(errno, "EDQUOT", errno.ENOSPC)}

_NUMBER = re.compile(r"\[errno (\d+)\]|\(os error (\d+)\)", re.IGNORECASE)  # Python's and Arrow's; Rust's
_TEXTS = [  # error texts that come without a number
    (re.compile(r"no space left on device|disk is full", re.IGNORECASE), errno.ENOSPC),
    (re.compile(r"PytorchStreamWriter|inline_container.*unexpected pos|file write failed|iostream error"), CUT_SHORT),
    (re.compile(r"^\d+ requested and \d+ written$"), CUT_SHORT),  # NumPy
    (re.compile(r"can't allocate memory|cannot allocate memory|std::bad_alloc|out of memory", re.I), errno.ENOMEM),
    (re.compile(r"failed to map segment from shared object"), errno.ENOMEM),  # an import
    (re.compile(r"can't start new thread"), errno.EAGAIN),
]


def explained(function: Callable[P, T]) -> Callable[P, T]:
    """Decorate `function` so that it raises errors of the machine as MachineError.

    An error that comes without a path names the folder in the function's argument `runs`.
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
            if (message := explain(error, Path(runs))) is None:
                raise
            raise MachineError(message) from error

    return call


def explain(error: BaseException, runs: Path) -> str | None:
    """Return the message for an error of the machine, None for any other error."""
    for cause, certain in _causes(error):
        number = _number(cause)
        if number in MESSAGES and (certain or number in EXHAUSTED):
            return f"{_location(cause, number, runs)}: {MESSAGES[number]}"
    return None


def is_exhausted(error: BaseException) -> bool:
    """Return True if disk space or memory ran out, so that the model or file in use is not to blame."""
    return any(_number(cause) in EXHAUSTED for cause, _ in _causes(error))


def folder_problems(runs: Path, name: str) -> list[str]:
    """Return the problems that keep a run from writing to `runs/name` and to the caches in `runs`; nothing is written.

    Raises OSError if a folder's status cannot be read.
    """
    run = runs / name
    problems = [_folder_problem(folder) for folder in (run, runs / EMBEDDINGS, runs / TEACHERS)]
    if not problems[0] and run.is_dir():
        problems += [_folder_problem(folder) for folder in run.iterdir() if folder.is_dir()]
    return list(dict.fromkeys(problem for problem in problems if problem))


def _folder_problem(folder: Path) -> str:
    """Return the reason why an existing or future folder is not writable, or an empty string."""
    existing = _existing(folder)
    if existing.is_symlink() and not existing.exists():
        return f"{existing}: a link to {os.readlink(existing)}, which does not exist; make it, or remove the link"
    if not existing.is_dir():
        return f"{existing}: {MESSAGES[errno.ENOTDIR]}"
    if not os.access(existing, os.W_OK | os.X_OK):
        read_only = hasattr(os, "statvfs") and os.statvfs(existing).f_flag & os.ST_RDONLY
        return f"{existing}: {MESSAGES[errno.EROFS if read_only else errno.EACCES]}"
    return ""


def _existing(path: Path) -> Path:
    """Return the path itself, or the nearest existing folder above it; a dangling link counts as existing."""
    while not os.path.lexists(path) and path != path.parent:
        path = path.parent
    return path


def _causes(error: BaseException) -> Iterator[tuple[BaseException, bool]]:
    """Yield the error and the chain of its causes, each with a flag that it certainly is the cause.

    An error that was raised while another one was handled may be independent of it, but not after disk space or memory
    ran out: then even closing a file fails.
    """
    seen: set[int] = set()
    certain = True
    while id(error) not in seen:
        yield error, certain
        seen.add(id(error))
        certain = certain and error.__cause__ is not None
        error = error.__cause__ or error.__context__ or error


def _number(error: BaseException) -> int:
    """Return the operating system's number of an error, 0 if it has none."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return errno.ENOMEM
    if isinstance(error, OSError) and error.errno:
        return error.errno
    own = type(error).__module__ == "builtins" and not isinstance(error, OSError | RuntimeError | ImportError)
    if own and type(error) is not Exception:
        return 0  # a ValueError or KeyError that quotes such a text
    text = one_line(error)
    if match := _NUMBER.search(text):
        return int(match[1] or match[2])
    return next((number for pattern, number in _TEXTS if pattern.search(text)), 0)


def _location(error: BaseException, number: int, runs: Path) -> str:
    """Return the path in the error; without one, for a full disk the folder with the least free space, else `runs`."""
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
