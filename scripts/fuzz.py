"""Run the pipeline on seeded faults and check its endings: scripts/fuzz.py [--cases 300] [--only SEED ...].

A case copies a tiny setting (recipe, collection, models, runs folder), makes one fault by its seed and runs the recipe:

    recipe, data, base   the fault is in an input; the runs folder has the finished run of the valid inputs
    finished, stopped    the fault is in a file of the runs folder, of a finished run or one that stopped after a stage

Correct endings are a message with exit code 2 or 3 (refused), and exit code 0 with the right model (repaired): that of
a run without a fault, or, where an input changed, the same bytes as with an empty runs folder. A traceback, a run that
does not end and any other model are failures, and the exit code is 1. On Linux the runs respect file permissions even
as root.
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
STOPS = ("retrieve", "mine", "train", "evaluate", "killed")  # `killed`: during training
BASES = ("base", "finder", "teacher")
CAPABILITY_VERSION = 0x20080522  # from linux/capability.h, as the numbers of the two capabilities
DAC_OVERRIDE, DAC_READ_SEARCH = 1, 2
LARGEST_FILE = 4096 << 20  # bytes that a run may write to one file

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
    """The ending of a run: its exit code (None: it did not end in time; negative: a signal) and its output."""

    code: int | None
    output: str

    @property
    def failure(self) -> str:
        """The reason why this ending is a failure; empty where it is none."""
        if self.code is None:
            return "did not end"
        if self.code < 0:
            return f"ended by {signal.Signals(-self.code).name}"
        if "Traceback (most recent call last)" in self.output or self.code not in (0, 2, 3):
            return f"exit {self.code}: {self.last_line}"
        if self.code and not self.output.strip():
            return f"exit {self.code} without a message"
        return ""

    @property
    def last_line(self) -> str:
        """The last line of the output."""
        return (self.output.strip().splitlines() or [""])[-1][:300]


def in_child(work: Callable[[], object], log: Path, limit: float) -> Ended:
    """Run `work` in a fork of this process, which has imported everything, with its output in a file."""
    child = os.fork()
    if child == 0:
        _run_and_exit(work, log)
    deadline = time.monotonic() + limit
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended or time.monotonic() > deadline:
            break
        time.sleep(0.02)
    if not ended:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status) if ended else None
    return Ended(code, log.read_text(encoding="utf-8", errors="replace"))


def _run_and_exit(work: Callable[[], object], log: Path) -> None:
    """Call `work` as the main function of a program, and exit this process."""
    file = log.open("w", buffering=1, encoding="utf-8")
    sys.stdout = sys.stderr = file
    for stream in (1, 2):
        os.dup2(file.fileno(), stream)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_FILE, LARGEST_FILE))
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
    """Drop root's capabilities to ignore file permissions; other users do not have them."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0)
    capabilities = (ctypes.c_uint32 * 6)()  # effective, permitted and inheritable ones, two times 32 bits of each
    if libc.capget(header, capabilities) == 0:
        capabilities[0] &= ~(1 << DAC_OVERRIDE | 1 << DAC_READ_SEARCH)
        libc.capset(header, capabilities)


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
    """Write the recipe, the collection and the three models of the valid setting."""
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
    """Build the valid inputs, a finished run and one for each stop; raise RuntimeError where one fails."""
    inputs = root / "inputs"
    steps = {"inputs": partial(build_inputs, inputs)}
    steps |= {name: partial(train, root / name, "runs", stop) for name, stop in _stops().items()}
    for name, work in steps.items():
        if name != "inputs":
            faults.copy(inputs, root / name)
        ended = in_child(work, root / f"{name}.log", limit)
        if ended.code != 0:
            raise RuntimeError(f"the setting {name} cannot be built: {ended.output}")


def _stops() -> dict[str, str]:
    return {"finished": "export"} | {f"stopped-{stop}": stop for stop in STOPS}


def model_of(folder: Path, runs: str) -> dict[str, str]:
    """Return the hashes of the exported files of the setting's recipe; empty where there is no model.

    The model card is not among them: people may edit it, so a run does not change it.
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
    """The case of a seed: a setting, a file in it and a fault."""

    seed: int
    kind: str
    setting: str
    target: Path
    fault: faults.Fault


@dataclass(frozen=True)
class Verdict:
    """The ending of a case: refused, repaired, traceback or wrong model, with the change made and the reason."""

    case: Case
    ending: str
    done: str
    why: str = ""


def draw(seed: int, root: Path) -> tuple[Case, random.Random]:
    """Return the case of a seed, with the random generator for its fault."""
    rng = random.Random(seed)
    kind = KINDS[seed % len(KINDS)]
    setting = f"stopped-{rng.choice(STOPS)}" if kind == "stopped" else "finished"
    below = {"recipe": "recipe.yaml", "data": "set", "base": f"models/{rng.choice(BASES)}"}.get(kind, "runs")
    folder = root / setting
    files = [folder / below] if kind == "recipe" else faults.tree(folder / below)
    target = rng.choice(files)
    return Case(seed, kind, setting, target.relative_to(folder), faults.fault_for(rng, target)), rng


def run_case(seed: int, root: Path, limit: float, keep: bool = False) -> Verdict:
    """Make the fault of a seed in a copy of its setting, run the recipe and return the verdict."""
    case, rng = draw(seed, root)
    folder = root / f"case-{seed}"
    faults.copy(root / case.setting, folder)
    try:
        done = case.fault(rng, folder / case.target)
        ending, why = run_and_compare(case, folder, root, limit)
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
    return Verdict(case, ending, f"{case.setting}: {case.target}: {done}", why)


def run_and_compare(case: Case, folder: Path, root: Path, limit: float) -> tuple[str, str]:
    """Run the recipe of a setting with a fault, and return the ending, with a reason where it is a failure."""
    ended = in_child(partial(train, folder, "runs"), folder / "log", limit)
    if ended.failure:
        return "traceback", ended.failure
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
    """Return whether the fault makes weights useless, or an input unreadable, so that the run must refuse it.

    These cannot be compared with an empty runs folder, which would treat the same file as one that was never given.
    """
    if case.kind in INPUTS and case.target.name != "README.md" and case.fault in faults.UNREADABLE:
        return True
    return case.kind == "base" and case.target.name == "model.safetensors" and case.fault in faults.LOSSY


# The command


def table(verdicts: list[Verdict]) -> str:
    """Return a table of the numbers of endings for each kind."""
    endings = ("refused", "repaired", "traceback", "wrong model")
    lines = [" | ".join(["kind".ljust(9), "cases", *endings])]
    for kind in (*KINDS, "all"):
        counts = Counter(verdict.ending for verdict in verdicts if kind in (verdict.case.kind, "all"))
        numbers = [str(counts[ending]).rjust(len(ending)) for ending in endings]
        lines.append(" | ".join([kind.ljust(9), str(counts.total()).rjust(5), *numbers]))
    return "\n".join(lines)


def import_everything() -> None:
    """Import the packages of a run before forking; compute nothing, because threads do not survive a fork."""
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
    """Run the cases, and print the table of their endings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=300, help="number of cases, with seeds from 0")
    parser.add_argument(
        "--only", type=int, nargs="+", metavar="SEED", help="only these seeds; their folders are not deleted"
    )
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
        print(f"the cases are in {root}")
    return int(any(verdict.ending in FAILURES for verdict in verdicts))


def run_all(root: Path, options: argparse.Namespace) -> list[Verdict]:
    """Run the cases in several processes; print every failure, and with `--only` or `--verbose` all endings."""
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
