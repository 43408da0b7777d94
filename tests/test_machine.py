"""Errors of the machine: one sentence that names the path and the remedy, whatever library raises them how."""

import errno
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from safetensors.torch import save_file

from trainer.errors import MachineError, TrainerError
from trainer.pipeline import run
from trainer.recipe import load_recipe
from trainer.runtime import console
from trainer.runtime.machine import explain, explained, folder_problems

BIG = np.arange(100_000.0)


@contextmanager
def file_limit(size):
    """No file of this process grows beyond `size` bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def another_user():
    """Root may write everywhere, so it becomes nobody for a while; others have no rights to give up."""
    root = os.geteuid() == 0
    if root:
        os.setresuid(65534, 65534, 0)
    try:
        yield
    finally:
        if root:
            os.setresuid(0, 0, 0)


def raised(function, *arguments):
    with pytest.raises(Exception) as caught:  # noqa: B017 whatever the library raises
        function(*arguments)
    return caught.value


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_bytes(b"a" * 9999),
        lambda path: torch.save(torch.zeros(9999), path),
        lambda path: save_file({"a": torch.zeros(9999)}, path),
        lambda path: np.save(path, BIG),
        lambda path: np.savez(path, a=BIG, b=BIG),
        lambda path: pyarrow.parquet.write_table(pyarrow.table({"a": BIG}), path, compression=None),
        lambda path: shutil.copytree(Path(__file__).parent, path),
    ],
    ids=["python", "torch", "safetensors", "numpy", "numpy zip", "arrow", "shutil"],
)
def test_a_full_disk_is_recognised_in_the_errors_of_all_libraries(tmp_path, write):
    with file_limit(1000):
        error = raised(write, tmp_path / "file")
    said = explain(error, tmp_path)
    assert said is not None, error
    assert str(tmp_path) in said
    assert "ulimit -f" in said
    assert "the disk is full" not in said  # it is not; torch and NumPy do not say what it was


def test_a_full_disk_without_a_path_names_the_disk_with_least_space(tmp_path):
    with open("/dev/full", "w") as full:
        full.write("a")
        error = raised(full.flush)
        with pytest.raises(OSError, match="No space left"):
            full.close()
    said = explain(error, tmp_path / "runs" / "not made yet")
    assert f"{tmp_path}/runs/not made yet (" in said or f"{tmp_path.parents[2]} (" in said
    assert "MB free): the disk is full; free some space" in said


@pytest.mark.parametrize("allocate", [lambda: np.empty(1 << 50), lambda: torch.empty(1 << 50)], ids=["numpy", "torch"])
def test_memory_that_ran_out_is_reported(allocate):
    assert explain(raised(allocate), Path("runs")).startswith("memory: memory ran out; end other programs")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
        ImportError("/lib/a.so: failed to map segment from shared object"),
        type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory. Tried to allocate 2.00 GiB."),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_memory_runs_out_under_many_names(error):
    assert explain(error, Path("runs")).startswith("memory: memory ran out")


def test_too_many_open_files_are_reported(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
    try:
        error = raised(open, tmp_path / "one-more", "w")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert explain(error, tmp_path) == f"{tmp_path}/one-more: too many open files; raise the limit (ulimit -n 65536)"


def test_impossible_paths_are_reported(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    long = explain(raised((tmp_path / ("a" * 300)).mkdir), tmp_path)
    assert long.endswith("the path is too long; choose a shorter name or folder")
    assert len(long) < 300
    below = tmp_path / "file" / "below"
    assert explain(raised(below.mkdir), tmp_path).startswith(f"{below}: a file exists where a folder is needed")
    assert "links form a loop" in explain(raised((tmp_path / "circle").read_text), tmp_path)
    assert "a folder exists where a file is needed" in explain(raised(tmp_path.read_text), tmp_path)


@pytest.mark.parametrize(
    "error",
    [
        KeyError("No space left on device"),
        ValueError("[Errno 28] No space left on device"),
        ZeroDivisionError(),
        ImportError("cannot import name 'a' from 'b'"),
        FileNotFoundError(errno.ENOENT, "No such file or directory", "a"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
    ],
    ids=repr,
)
def test_other_errors_are_unchanged(error):
    assert explain(error, Path("runs")) is None

    @explained
    def fail():
        raise error

    with pytest.raises(type(error)) as caught:
        fail()
    assert caught.value is error


def chained(first, second, cause):
    try:
        try:
            raise first
        except OSError as error:
            raise second from (error if cause else None)
    except type(second) as error:
        if not cause:
            error.__suppress_context__ = False
        return error


def test_an_error_that_was_handled_is_not_blamed_for_the_next_one_but_a_full_disk_is():
    denied, full = PermissionError(errno.EACCES, "denied", "a"), OSError(errno.ENOSPC, "No space left", "a")
    assert explain(chained(denied, KeyError("b"), cause=False), Path("runs")) is None
    assert explain(chained(denied, KeyError("b"), cause=True), Path("runs")).startswith("a: permission denied")
    assert explain(chained(full, ValueError("can't close"), cause=False), Path("runs")).startswith(
        "a: the disk is full"
    )


def test_trainer_errors_are_unchanged():
    @explained
    def fail():
        raise TrainerError("recipe.yaml:1: no space left on device")

    with pytest.raises(TrainerError) as caught:
        fail()
    assert type(caught.value) is TrainerError


# The run folder


def test_a_writable_run_folder_has_no_problem_and_nothing_is_written(tmp_path):
    assert folder_problems(tmp_path / "a" / "runs", "tiny") == []
    (tmp_path / "runs" / "tiny" / "train").mkdir(parents=True)
    assert folder_problems(tmp_path / "runs", "tiny") == []
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["runs", "tiny", "train"]


def test_files_and_dangling_links_instead_of_folders_are_reported(tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "tiny").touch()
    (fault,) = folder_problems(tmp_path / "runs", "tiny")
    assert fault.startswith(f"{tmp_path}/runs/tiny: a file exists where a folder is needed")
    (fault,) = folder_problems(tmp_path / "runs" / "tiny", "again")
    assert fault.startswith(f"{tmp_path}/runs/tiny: a file exists where a folder is needed")
    (tmp_path / "linked").symlink_to(tmp_path / "gone")
    (fault,) = folder_problems(tmp_path / "linked", "tiny")
    assert fault == (f"{tmp_path}/linked: a link to {tmp_path}/gone, which does not exist; make it, or remove the link")


@pytest.mark.parametrize("name", [".", "tiny", "tiny/train", ".embeddings"])
def test_a_folder_of_another_user_is_reported(tmp_path, name):
    runs = tmp_path / "runs"
    for folder in ("tiny/train", ".embeddings"):
        (runs / folder).mkdir(parents=True)
    for folder in (runs, *runs.rglob("*")):
        folder.chmod(0o777)
    locked = runs / name
    locked.chmod(0o555)
    for folder in (tmp_path, *tmp_path.parents):
        if Path(tempfile.gettempdir()) in folder.parents:
            folder.chmod(0o755)  # pytest's own are for their owner alone
    with another_user():
        faults = folder_problems(runs, "tiny")
    assert any(fault.startswith(f"{locked}: permission denied; check its owner") for fault in faults), faults


def test_check_and_run_check_the_folder_first(recipe_file, tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "tiny").touch()
    with pytest.raises(MachineError, match="runs/tiny: a file exists where a folder is needed"):
        run(load_recipe(recipe_file), tmp_path / "runs")
    assert (tmp_path / "runs" / "tiny").is_file()


# A disk that fills at every stage


@pytest.mark.parametrize(
    ("stage", "size"),
    [
        ("data", 10),
        ("data", 1_000),
        ("retrieve", 500),
        ("mine", 300),
        ("mine", 1_500),
        ("train", 50),
        ("train", 20_000),
        ("train", 150_000),
        ("evaluate", 300),
        ("export", 20_000),
    ],
)
def test_a_full_disk_ends_the_run_with_one_sentence_and_the_run_can_be_resumed(
    exported, tmp_path, monkeypatch, stage, size
):
    recipe_file, finished = exported
    recipe, runs = load_recipe(recipe_file, ["export.formats=[]"]), tmp_path / "runs"
    shutil.copytree(finished, runs)
    stages = ["data", "retrieve", "mine", "train", "evaluate", "export"]
    for later in stages[stages.index(stage) :]:
        shutil.rmtree(runs / "exported" / later)
    whole = {path: path.read_bytes() for path in runs.rglob("*.json") if path.parent.name in stages}
    monkeypatch.setattr(console.console, "quiet", True)  # what pytest captures is a file as well
    with (
        file_limit(size),
        pytest.raises(MachineError, match=r"^\S*.*: (the file would be larger|a file could not be written)"),
    ):
        run(recipe, runs, until=stage, force=True)
    assert {path: path.read_bytes() for path in whole} == whole
    run(recipe, runs, until=stage, force=True)
    for name in ("mine/groups.json", "evaluate/results.json"):
        if (runs / "exported" / name).is_file():
            assert (runs / "exported" / name).read_bytes() == (finished / "exported" / name).read_bytes()


# The commands


def call(*words, stdout=subprocess.PIPE, **environment):
    program = "import sys\nfrom trainer.__main__ import reranker\nsys.argv[0] = 'reranker'\nreranker()"
    words = [sys.executable, "-c", program, *map(str, words)]
    return subprocess.Popen(words, stdout=stdout, stderr=subprocess.PIPE, text=True, env=os.environ | environment)


def test_a_broken_pipe_ends_a_command_silently():
    with call("check", "--schema") as process:
        process.stdout.close()
        assert (process.stderr.read(), process.wait()) == ("", 141)


def test_an_output_on_a_full_disk_is_reported():
    with open("/dev/full", "w") as full, call("check", "--schema", stdout=full) as process:
        said = process.stderr.read()
    assert process.returncode == 2
    assert said == ("standard output: the disk is full; free some space, then run the same command again to resume\n")


@pytest.mark.skipif(sys.platform != "linux", reason="torch waits with another OpenMP library")
@pytest.mark.parametrize(
    ("environment", "turns"),
    [({}, "2000"), ({"GOMP_SPINCOUNT": "5000"}, "5000"), ({"OMP_WAIT_POLICY": "PASSIVE"}, "0")],
)
def test_waiting_threads_sleep_unless_the_environment_says_otherwise(environment, turns):
    program = "from trainer.__main__ import _before_importing\n_before_importing()\nimport torch"
    settings = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    settings |= environment | {"OMP_DISPLAY_ENV": "VERBOSE"}
    ended = subprocess.run([sys.executable, "-c", program], env=settings, capture_output=True, text=True, check=True)
    assert f"GOMP_SPINCOUNT = '{turns}'" in ended.stderr
