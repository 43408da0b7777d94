"""The fuzz finds what it should, and the pipeline stands twenty of its seeded faults (scripts/fuzz.py runs 300)."""

import json
import random
import subprocess
import sys
import time
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

SCRIPTS = Path(__file__).parents[1] / "scripts"
sys.path.insert(0, str(SCRIPTS))

import faults  # noqa: E402
import fuzz  # noqa: E402

sys.path.remove(str(SCRIPTS))

forks = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # no thread of this process holds a lock
SAMPLES = {
    "notes.json": json.dumps({"fingerprint": "abc", "scores": [0.5, 1, 2], "nested": {"seed": 3}}, indent=2),
    "rows.jsonl": "".join(json.dumps({"_id": f"d{row}", "text": "some words"}) + "\n" for row in range(5)),
    "recipe.yaml": fuzz.RECIPE,
    "qrels.tsv": "query-id\tcorpus-id\tscore\nq1\td1\t1\nq2\td2\t1\n",
}


@pytest.fixture
def sample(tmp_path):
    """`sample(name)` writes one file anew, with another beside it, in a folder of its own."""
    made = count()

    def write(name: str) -> Path:
        folder = tmp_path / f"sample-{next(made)}"
        folder.mkdir()
        (folder / "another.txt").write_text("another file\n")
        if name.endswith(".safetensors"):
            torch.manual_seed(0)
            names = ("embeddings.word", "encoder.layer.0.query", "encoder.layer.1.query")
            save_file({name: torch.randn(4, 3) for name in names}, folder / name)
        else:
            (folder / name).write_text(SAMPLES[name])
        return folder / name

    return write


def content(folder: Path) -> dict[str, object]:
    return {
        path.name: (path.is_symlink(), path.is_dir(), path.exists() and path.stat().st_mode)
        + ((path.read_bytes(),) if path.is_file() else ())
        for path in sorted(folder.iterdir())
    }


@pytest.mark.parametrize("name", [*SAMPLES, "model.safetensors"])
def test_every_fault_of_a_file_changes_it_and_a_seed_always_in_the_same_way(sample, name):
    for fault in {*faults.ANY, *faults.BY_SUFFIX[Path(name).suffix]}:
        changed = 0
        for seed in range(4):
            before, one, two = sample(name), sample(name), sample(name)
            said = [fault(random.Random(seed), path) for path in (one, two)]
            assert said[0] == said[1]
            assert content(one.parent) == content(two.parent), fault.__name__
            changed += content(one.parent) != content(before.parent)
        assert changed, fault.__name__  # a zeroed byte may have been zero, a repeated line an empty one


def test_faults_of_weights_are_what_they_say(sample):
    rng, whole = random.Random(1), load_file(sample("model.safetensors"))
    for fault in (faults.missing_tensors, faults.wrong_shape, faults.not_a_number):
        path = sample("model.safetensors")
        fault(rng, path)
        weights = load_file(path)
        assert torch.equal(weights["encoder.layer.1.query"], whole["encoder.layer.1.query"])
        if fault is faults.missing_tensors:
            assert weights.keys() < whole.keys()
        elif fault is faults.wrong_shape:
            assert [name for name in whole if weights[name].shape != whole[name].shape]
        else:
            assert sum(int(weight.isnan().sum()) for weight in weights.values()) == 1


@pytest.mark.parametrize(
    ("code", "output", "failure"),
    [
        (0, "", ""),
        (2, "recipe.yaml:3: no such key\n", ""),
        (3, "stopped\n", ""),
        (2, "\n", "exit 2 without a message"),
        (1, "oh\n", "exit 1: oh"),
        (0, "Traceback (most recent call last):\nValueError: x\n", "exit 0: ValueError: x"),
        (-11, "", "ended by SIGSEGV"),
        (None, "still at it\n", "did not end"),
    ],
)
def test_an_ending_is_a_failure_unless_it_is_success_or_a_message(code, output, failure):
    assert fuzz.Ended(code, output).failure == failure


@forks
def test_a_child_is_watched_to_its_end(tmp_path):
    def speak() -> None:
        sys.stderr.write("a sentence\n")
        sys.exit(2)

    assert fuzz.in_child(speak, tmp_path / "log", 30) == fuzz.Ended(2, "a sentence\n")
    assert fuzz.in_child(lambda: 1 / 0, tmp_path / "log", 30).failure == "exit 1: ZeroDivisionError: division by zero"
    assert fuzz.in_child(lambda: None, tmp_path / "log", 30) == fuzz.Ended(0, "")
    assert fuzz.in_child(lambda: time.sleep(60), tmp_path / "log", 0.1).code is None


@forks
@pytest.mark.skipif(sys.platform != "linux", reason="root's rights are those of Linux")
def test_a_file_without_permissions_cannot_be_read_by_a_run_even_of_root(tmp_path):
    secret = tmp_path / "secret"
    secret.touch(mode=0)

    def read() -> None:
        fuzz.obey_permissions()
        secret.read_bytes()

    assert "PermissionError" in fuzz.in_child(read, tmp_path / "log", 30).failure


@pytest.fixture
def judge(tmp_path, monkeypatch):
    """`judge(kind, runs=..., fresh=...)`: a run that writes these exported weights (None: it refuses), judged."""
    monkeypatch.setattr(fuzz, "train", lambda folder, runs: export(folder, runs, written[runs]))
    written: dict[str, bytes | None] = {}

    def export(folder: Path, runs: str, weights: bytes | None) -> None:
        if weights is None:
            sys.stdout.write("refused for a reason\n")
            sys.exit(2)
        model = folder / runs / "tiny" / "export" / "model"
        model.mkdir(parents=True, exist_ok=True)
        (model / "model.safetensors").write_bytes(weights)
        (model / "README.md").write_text(f"people may edit this: {folder.name}")

    def judge(kind: str, runs: bytes | None, fresh: bytes | None = None, fault: faults.Fault = faults.flip_bytes):
        for name in ("finished", "case"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "recipe.yaml").write_text("name: tiny\ndata: {path: set}\n")
        export(tmp_path / "finished", "runs", b"sound")
        written.update(runs=runs, fresh=fresh)
        case = fuzz.Case(0, kind, "finished", Path("models/base/model.safetensors"), fault)
        return fuzz.run_and_compare(case, tmp_path / "case", tmp_path, 30)

    return judge


@forks
@pytest.mark.parametrize(
    ("kind", "runs", "fresh", "ending"),
    [
        ("finished", b"sound", None, "repaired"),
        ("stopped", b"other", None, "wrong model"),
        ("finished", None, None, "refused"),
        ("data", b"other", b"other", "repaired"),  # another collection, another model
        ("data", b"sound", b"other", "wrong model"),  # the old run was taken for one of the new inputs
        ("recipe", b"sound", None, "wrong model"),  # what an empty runs folder refuses
    ],
)
def test_a_model_is_right_if_it_is_the_undisturbed_runs_or_that_of_the_changed_inputs(judge, kind, runs, fresh, ending):
    assert judge(kind, runs, fresh)[0] == ending


@forks
@pytest.mark.parametrize(
    ("kind", "fault"),
    [("base", faults.missing_tensors), ("data", faults.make_directory), ("recipe", faults.dangling_link)],
)
def test_an_input_that_is_not_whole_or_cannot_be_read_must_be_refused(judge, kind, fault):
    assert judge(kind, b"other", b"other", fault)[0] == "wrong model"


def test_the_table_counts_endings_by_kind():
    cases = [fuzz.Case(seed, kind, "finished", Path("x"), faults.empty) for seed, kind in enumerate(fuzz.KINDS)]
    endings = ["refused", "repaired", "traceback", "wrong model", "repaired"]
    verdicts = [fuzz.Verdict(case, ending, "") for case, ending in zip(cases, endings, strict=True)]
    rows = {line.split("|")[0].strip(): line.split("|")[1:] for line in fuzz.table(verdicts).splitlines()}
    counts = {kind: np.array(row, dtype=int).tolist() for kind, row in rows.items() if kind != "kind"}
    assert counts["data"] == [1, 0, 1, 0, 0]
    assert counts["all"] == [5, 1, 2, 1, 1]


@pytest.mark.slow
def test_twenty_seeded_faults_are_refused_or_repaired():
    done = subprocess.run([sys.executable, str(SCRIPTS / "fuzz.py"), "--cases", "20"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
