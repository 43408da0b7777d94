"""Run the pipeline on seeded faults and judge how it ends: scripts/fuzz.py [--cases 300] [--only SEED ...].

A case copies a tiny setting (recipe, collection, models, runs folder), makes one fault by its seed and runs the recipe:

    recipe, data, base   the fault is in an input; the runs folder holds the finished run of the sound inputs
    finished, stopped    the fault is in a file of the runs folder, of a finished run or of one that ended at some stage

It ends well with a message and exit code 2 or 3 (refused), or with exit code 0 and the right model (repaired): of an
undisturbed run, or, where an input changed, the bytes that an empty runs folder gives for the same inputs. A traceback,
a run that does not end and any other model are failures, and the exit code is 1. The runs obey the permissions of files
also where root starts them (on Linux).
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import faults

INPUTS = ("recipe", "data", "base")
KINDS = (*INPUTS, "finished", "stopped")
FAILURES = ("traceback", "wrong model")
STOPS = ("retrieve", "mine", "train", "evaluate", "killed")  # `killed` is killed while it trains
BASES = ("base", "finder", "teacher")
CAPABILITY_VERSION = 0x20080522  # of linux/capability.h, as are the two numbers of the rights
DAC_OVERRIDE, DAC_READ_SEARCH = 1, 2
ENOUGH = 4096 << 20  # bytes that a run may write to one file

RECIPE = """name: tiny
data:
  path: set
retriever:
  kind: hybrid
  model: models/finder
  depth: 12
mine:
  negatives_per_positive: 2
  teacher: models/teacher
reranker:
  model: models/base
  max_length: 32
train:
  queries_per_step: 4
  learning_rate: 1.0e-3
  checkpoint_steps: 2
evaluate:
  metrics: [nDCG@10, RR@10]
"""


# Processes


@dataclass(frozen=True)
class Ended:
    """How a run ended: its exit code (None: it did not end in time; negative: a signal) and all that it printed."""

    code: int | None
    output: str

    @property
    def fault(self) -> str:
        """Why this is no way to end, or nothing."""
        if self.code is None:
            return "did not end"
        if self.code < 0:
            return f"ended by {signal.Signals(-self.code).name}"
        if "Traceback (most recent call last)" in self.output or self.code not in (0, 2, 3):
            return f"exit {self.code}: {self.last_line}"
        if self.code and not self.output.strip():
            return f"exit {self.code} without a word"
        return ""

    @property
    def last_line(self) -> str:
        """The last line that was printed."""
        return (self.output.strip().splitlines() or [""])[-1][:300]


def in_child(work: Callable[[], object], log: Path, limit: float) -> Ended:
    """Run `work` in a fork of this process, which has imported everything, with its output in a file."""
    child = os.fork()
    if child == 0:
        _carry_out(work, log)
    deadline = time.monotonic() + limit
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        if found or time.monotonic() > deadline:
            break
        time.sleep(0.02)
    if not found:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status) if found else None
    return Ended(code, log.read_text(encoding="utf-8", errors="replace"))


def _carry_out(work: Callable[[], object], log: Path) -> None:
    """Do the work as a program would, and end this process."""
    file = log.open("w", buffering=1, encoding="utf-8")
    sys.stdout = sys.stderr = file
    for stream in (1, 2):
        os.dup2(file.fileno(), stream)
    resource.setrlimit(resource.RLIMIT_FSIZE, (ENOUGH, ENOUGH))
    code = 0
    try:
        work()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        code = 1
        traceback.print_exc()
    file.flush()
    os._exit(code)


def train(folder: Path, runs: str, until: str = "export") -> None:
    """Run a setting's recipe as `reranker UNTIL` does, and end the process."""
    from trainer.commands.cli import reranker_command

    if sys.platform == "linux":
        obey_permissions()
    os.chdir(folder)
    if until == "killed":
        _kill_at_the_second_checkpoint()
        until = "train"
    sys.argv = ["reranker", until, "recipe.yaml", "--runs", runs, "--force"]
    reranker_command()


def obey_permissions() -> None:
    """Give up root's right to read and write files whatever their permissions say; others never had it."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0)
    rights = (ctypes.c_uint32 * 6)()  # effective, permitted and inheritable ones, twice 32 bits of each
    if libc.capget(header, rights) == 0:
        rights[0] &= ~(1 << DAC_OVERRIDE | 1 << DAC_READ_SEARCH)
        libc.capset(header, rights)


def _kill_at_the_second_checkpoint() -> None:
    from trainer.training import loop

    save, saved = loop.save_checkpoint, []

    def save_and_die(*words: Any) -> None:
        save(*words)
        saved.append(words)
        if len(saved) == 2:
            os._exit(0)

    loop.save_checkpoint = save_and_die


# Settings


def build_inputs(folder: Path) -> None:
    """Write the recipe, the collection and the three models of the sound setting."""
    from conftest import build_collection_folder, build_models, vocabulary
    from sentence_transformers import SentenceTransformer

    folder.mkdir()
    made = build_models(folder / "made", vocabulary())
    (folder / "models").mkdir()
    shutil.move(made["bert"], folder / "models" / "base")
    shutil.move(made["reranker"], folder / "models" / "teacher")
    SentenceTransformer(str(made["roberta"]), device="cpu").save(str(folder / "models" / "finder"))
    shutil.rmtree(folder / "made")
    build_collection_folder(folder / "set")
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")


def build_settings(root: Path, limit: float) -> None:
    """Build the sound inputs, a finished run and one that ended at each stop; raises RuntimeError where one fails."""
    inputs = root / "inputs"
    steps = {"inputs": partial(build_inputs, inputs)}
    steps |= {name: partial(train, root / name, "runs", stop) for name, stop in _stops().items()}
    for name, work in steps.items():
        if name != "inputs":
            faults.copy(inputs, root / name)
        ended = in_child(work, root / f"{name}.log", limit)
        if ended.code != 0:
            raise RuntimeError(f"the sound setting {name} cannot be built: {ended.output}")


def _stops() -> dict[str, str]:
    return {"finished": "export"} | {f"stopped-{stop}": stop for stop in STOPS}


def model_of(folder: Path, runs: str) -> dict[str, str]:
    """Return the hash of every exported file of the setting's recipe; empty where there is no model.

    The card is not among them: people may edit it, so a run leaves it as it finds it.
    """
    from trainer.recipe import load_recipe
    from trainer.runtime.verify import FOR_PEOPLE

    model = folder / runs / load_recipe(folder / "recipe.yaml").name / "export" / "model"
    return {str(path.relative_to(model)): _sha256(path) for path in faults.tree(model) if path.name not in FOR_PEOPLE}


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# Cases


@dataclass(frozen=True)
class Case:
    """What a seed stands for: a setting, a file in it and a fault."""

    seed: int
    kind: str
    setting: str
    target: Path
    fault: faults.Fault


@dataclass(frozen=True)
class Verdict:
    """How a case ended: refused, repaired, traceback or wrong model; what was done, and what came of it."""

    case: Case
    ending: str
    done: str
    why: str = ""


def draw(seed: int, root: Path) -> tuple[Case, random.Random]:
    """Return the case of a seed, with the generator that its fault goes on to draw from."""
    rng = random.Random(seed)
    kind = KINDS[seed % len(KINDS)]
    setting = f"stopped-{rng.choice(STOPS)}" if kind == "stopped" else "finished"
    below = {"recipe": "recipe.yaml", "data": "set", "base": f"models/{rng.choice(BASES)}"}.get(kind, "runs")
    folder = root / setting
    files = [folder / below] if kind == "recipe" else faults.tree(folder / below)
    target = rng.choice(files)
    return Case(seed, kind, setting, target.relative_to(folder), faults.fault_for(rng, target)), rng


def run_case(seed: int, root: Path, limit: float, keep: bool = False) -> Verdict:
    """Make the fault of a seed in a copy of its setting, run the recipe and judge the end."""
    case, rng = draw(seed, root)
    folder = root / f"case-{seed}"
    faults.copy(root / case.setting, folder)
    try:
        done = case.fault(rng, folder / case.target)
        ending, why = judge(case, folder, root, limit)
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
    return Verdict(case, ending, f"{case.setting}: {case.target}: {done}", why)


def judge(case: Case, folder: Path, root: Path, limit: float) -> tuple[str, str]:
    """Run the recipe of a disturbed setting; return the ending and, of a failure, the reason."""
    ended = in_child(partial(train, folder, "runs"), folder / "log", limit)
    if ended.fault:
        return "traceback", ended.fault
    if ended.code:
        return "refused", ended.last_line
    if must_be_refused(case):
        return "wrong model", "exit 0 with an input that cannot be read"
    expected = root / "finished"
    if case.kind in INPUTS:
        fresh = in_child(partial(train, folder, "fresh"), folder / "fresh.log", limit)
        if fresh.code != 0:
            return "wrong model", f"exit 0, but an empty runs folder gives exit {fresh.code}: {fresh.last_line}"
        theirs, ours = model_of(folder, "fresh"), model_of(folder, "runs")
    else:
        theirs, ours = model_of(expected, "runs"), model_of(folder, "runs")
    differ = sorted(name for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name))
    return ("wrong model", f"differs in {', '.join(differ)}") if differ or not ours else ("repaired", "")


def must_be_refused(case: Case) -> bool:
    """Whether the fault leaves weights that no run should use, or an input that is there and cannot be read.

    An empty runs folder is no judge of these: it would take the same file for one that was never given.
    """
    if case.kind in INPUTS and case.target.name != "README.md" and case.fault in faults.UNREADABLE:
        return True
    return case.kind == "base" and case.target.name == "model.safetensors" and case.fault in faults.LOSSY


# The command


def table(verdicts: list[Verdict]) -> str:
    """Count the endings of each kind."""
    endings = ("refused", "repaired", "traceback", "wrong model")
    lines = [" | ".join(["kind".ljust(9), "cases", *endings])]
    for kind in (*KINDS, "all"):
        counts = Counter(verdict.ending for verdict in verdicts if kind in (verdict.case.kind, "all"))
        numbers = [str(counts[ending]).rjust(len(ending)) for ending in endings]
        lines.append(" | ".join([kind.ljust(9), str(counts.total()).rjust(5), *numbers]))
    return "\n".join(lines)


def import_everything() -> None:
    """Import what a run needs, so that forks have it; nothing is computed here, since threads do not survive a fork."""
    import conftest
    import faiss
    import onnxruntime
    import sentence_transformers
    import torch._dynamo

    import trainer.evaluation.two_stage
    import trainer.export
    import trainer.pipeline
    import trainer.runtime.precision
    import trainer.training

    torch.set_num_threads(1)
    trainer.runtime.precision.has_native_bf16 = lambda: (
        False
    )  # else a measured speedup chooses, and two runs differ by chance
    assert all((conftest, faiss, onnxruntime, sentence_transformers, trainer))


def main() -> int:
    """Run the cases and print what came of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=300, help="seeds from 0 on")
    parser.add_argument("--only", type=int, nargs="+", metavar="SEED", help="these seeds; their folders are kept")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--limit", type=float, default=180, help="seconds that a run may take")
    parser.add_argument("--verbose", action="store_true", help="show refusals and repairs too")
    options = parser.parse_args()
    import_everything()
    root = Path(tempfile.mkdtemp(prefix="fuzz-"))
    try:
        verdicts = run_all(root, options)
    finally:
        if not options.only:
            shutil.rmtree(root)
    print(table(verdicts))
    if options.only:
        print(f"kept in {root}")
    return int(any(verdict.ending in FAILURES for verdict in verdicts))


def run_all(root: Path, options: argparse.Namespace) -> list[Verdict]:
    """Run the cases in a few processes; print every failure, and of chosen seeds everything."""
    build_settings(root, options.limit)
    case = partial(run_case, root=root, limit=options.limit, keep=bool(options.only))
    verdicts = []
    with get_context("fork").Pool(options.processes) as pool:
        for verdict in pool.imap_unordered(case, options.only or range(options.cases)):
            verdicts.append(verdict)
            if options.verbose or options.only or verdict.ending in FAILURES:
                print(f"{verdict.case.seed:>5}  {verdict.ending}  {verdict.done!r}\n       {verdict.why!r}", flush=True)
    return verdicts


if __name__ == "__main__":
    sys.exit(main())
