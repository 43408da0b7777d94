"""What the tests start is shown when it does not end, and never outlives them."""

import sys
import time

import psutil
import pytest

# Starts another process, tells its number, and waits for ever.
WAITING = """
import subprocess, sys, time
def wait_for_the_other():
    time.sleep(600)
child = subprocess.Popen([sys.executable, "-c", "import time; print('born', flush=True); time.sleep(600)"])
print("started", child.pid, flush=True)
wait_for_the_other()
"""
HANGING = [sys.executable, "-c", WAITING]


def child_of(run):
    deadline = time.monotonic() + 60
    while "born" not in (text := run.outputs[0][0].read_text()) or "started" not in text:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return psutil.Process(int(text.split("started")[1].split()[0]))


@pytest.fixture
def failure(started):
    """`failure(line, ..., limit=seconds)` returns the process that the first line started, and how the end is told."""

    def failure(*lines, **limits):
        with started(*lines) as run:
            child = child_of(run)
            with pytest.raises(pytest.fail.Exception) as failed:
                run.finish(**limits)
        return child, str(failed.value)

    return failure


def test_what_hangs_is_killed_with_all_it_started_and_shows_where_it_waited(failure):
    child, told = failure(HANGING, limit=0)
    assert "exit codes [None] after" in told
    assert "computed 0." in told
    assert "born" in told
    assert "in wait_for_the_other" in told  # its stack
    assert not child.is_running()


def test_where_one_fails_the_others_are_not_waited_for(failure):
    failing = [sys.executable, "-c", "import sys; print('no such data', file=sys.stderr); sys.exit(2)"]
    child, told = failure(HANGING, failing, grace=0.1)
    assert "exit codes [None, 2]" in told
    assert "no such data" in told
    assert not child.is_running()


def test_a_test_that_fails_leaves_nothing_behind(started):
    children = []

    def fail():
        with started(HANGING) as run:
            children.append(child_of(run))
            raise ZeroDivisionError

    pytest.raises(ZeroDivisionError, fail)
    assert not children[0].is_running()


def test_what_ends_is_returned_with_what_it_wrote(started):
    lines = [[sys.executable, "-c", f"import os; print(os.environ['WORD'], {number})"] for number in range(2)]
    with started(*lines, WORD="hello") as run:
        ended = run.finish()
    assert [(one.returncode, one.stdout, one.stderr) for one in ended] == [(0, f"hello {n}\n", "") for n in range(2)]
