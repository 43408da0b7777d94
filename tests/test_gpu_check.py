"""The check on a GPU: its parts run dry on the CPU, and one that fails or hangs costs only itself."""

import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "scripts"
FORK = multiprocessing.get_context("fork")


def no_library(results, folder, dry):
    results.add("before", value=1)
    raise ImportError("cannot import name 'Newer' from 'transformers'")


def killed(results, folder, dry):
    results.add("before", value=2)
    os._exit(9)


def hangs_with_a_child(results, folder, dry):
    child = subprocess.Popen(["sleep", "300"])
    results.add("child", pid=child.pid)
    child.wait()


def no_gpu(results, folder, dry):
    sys.exit(3)


def works(results, folder, dry):
    results.add("score, ours", pairs_per_second=30.0)
    results.add("score, ours padded", pairs_per_second=15.0)
    results.add("score, sentence-transformers", pairs_per_second=10.0)
    results.add("train, ours", pairs_per_second=5.0)


def run(tmp_path, *functions, limit=20):
    from gpu_check import run as run_parts
    from gpu_parts import Part

    parts = [Part(each.__name__, limit, "", each) for each in functions]
    return run_parts(parts, False, tmp_path / "made" / "all.json", FORK)


def test_a_part_that_fails_does_not_stop_the_others(scripts, tmp_path):
    failed, died, ok = run(tmp_path, no_library, killed, works)
    assert (failed.ended, died.ended, ok.ended) == ("failed", "failed", "ok")
    assert failed.results[0] == {"what": "before", "value": 1}
    assert failed.results[1]["error"] == "ImportError: cannot import name 'Newer' from 'transformers'"
    assert died.results == [{"what": "before", "value": 2}]
    kept = json.loads((tmp_path / "made" / "all.json").read_text())
    assert [part["ended"] for part in kept["parts"]] == ["failed", "failed", "ok"]


def test_a_part_that_hangs_ends_at_its_limit_with_all_that_it_started(scripts, tmp_path):
    late, ok = run(tmp_path, hangs_with_a_child, works, limit=1)
    assert late.ended == "ended at its limit of 1 s"
    assert ok.ended == "ok"
    assert is_gone(late.results[0]["pid"])


def is_gone(pid):
    """Whether a process has ended; one that nobody has waited for yet counts."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def test_unused_time_is_available_to_later_parts(scripts, tmp_path):
    _, late = run(tmp_path, works, hangs_with_a_child, limit=1)
    assert 1.5 < late.seconds < 4


def test_without_a_gpu_nothing_more_is_tried(scripts, tmp_path):
    (only,) = run(tmp_path, no_gpu, works)
    assert only.ended == "no GPU"


def test_speeds_are_compared_with_theirs_on_the_same_work(scripts, tmp_path, capsys):
    from gpu_check import measurements, print_summary

    outcomes = run(tmp_path, works)
    rows = {row["what"]: row["times_theirs"] for row in measurements(outcomes[0])}
    assert rows == {
        "score, ours": 3.0,
        "score, ours padded": 1.5,
        "score, sentence-transformers": 1.0,
        "train, ours": None,
    }
    print_summary(outcomes)
    assert "| works | score, ours padded | 15.0 |  | 1.50 |" in capsys.readouterr().out


def test_all_limits_together_are_five_minutes_at_most(scripts):
    from gpu_check import PARTS

    assert sum(part.limit for part in PARTS) <= 300


def test_versions_below_the_floors_are_named(scripts, monkeypatch):
    import gpu_parts

    versions = {"torch": "2.11.0+cu130", "transformers": "5.23.0", "numpy": "10.0"}
    monkeypatch.setattr(gpu_parts, "_version", versions.get)
    packages = gpu_parts.packages()
    assert packages["below_floor"] == ["torch 2.11.0+cu130 < 2.13"]
    assert packages["versions"] == ["numpy 10.0", "transformers 5.23.0"]
    assert "datasets" in packages["missing"]


def test_flops_of_a_decoder_count_its_heads_and_half_of_its_attention(scripts):
    from bench_sides import model_flops
    from gpu_models import classifier, config

    model, tiny = classifier("decoder", True, "cpu"), config("decoder", True)
    hidden, heads, width, groups = tiny.hidden_size, tiny.num_attention_heads, tiny.head_dim, tiny.num_key_value_heads
    projections = 2 * hidden * heads * width + 2 * hidden * groups * width + 3 * hidden * tiny.intermediate_size
    layers = tiny.num_hidden_layers
    expected = 2 * (layers * projections * 9 + hidden) + layers * 4 * heads * width * 9 * 9 / 2
    assert model_flops(model, [9], causal=True) == expected


def dry(part, tmp_path):
    """Carry out a part on the CPU, in this process."""
    from gpu_check import PARTS
    from gpu_parts import Results

    results = Results(part, tmp_path)
    next(each for each in PARTS if each.name == part).run(results, tmp_path, True)
    found = {result["what"]: result for result in results.read()}
    assert not [result for result in found.values() if "error" in result]
    return found


def assert_real_speeds(found, names):
    for name in names:
        assert found[name]["pairs_per_second"] > 0
        assert 0 < found[name]["share_of_peak"] < 1
        assert found[name]["peak_mib"] > 0


def test_the_machine_is_measured_dry(scripts, tmp_path):
    found = dry("machine", tmp_path)
    assert found["matrix product"]["tflops"] > 0
    assert not found["packages"]["below_floor"]


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["minilm", "modernbert", "decoder"])
def test_a_shape_is_measured_dry(scripts, tmp_path, shape):
    found = dry(shape, tmp_path)
    names = [f"{work}, {side}" for work in ("score", "train") for side in ("ours", "sentence-transformers")]
    assert_real_speeds(found, names)
    difference = found["difference of scores"]
    assert difference["largest"] < 1e-3 * difference["spread"]
    losses = [found[f"train, {side}"]["last_loss"] for side in ("ours", "sentence-transformers")]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)  # in bf16
    assert_real_speeds(found, ["score, ours packed"])
    if shape == "decoder":
        assert_real_speeds(found, ["train, ours LoRA"])
        assert found["train, ours LoRA"]["last_loss"] < np.log(4) + 0.1  # of four documents, by chance log 4
    else:
        assert_real_speeds(found, ["train, ours packed"])
        losses = [found[f"train, ours {layout}"]["last_loss"] for layout in ("packed", "padded")]
        assert losses[0] == pytest.approx(losses[1], rel=0.02)


@pytest.mark.slow
def test_all_parts_run_dry(tmp_path):
    path = tmp_path / "all.json"
    command = [SCRIPTS / "gpu_check", "--dry", "--json", path]
    environment = os.environ | {"PYTHON": sys.executable}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    parts = {part["part"]: part for part in json.loads(path.read_text())["parts"]}
    assert list(parts) == ["machine", "tests", "recipe", "minilm", "modernbert", "decoder", "compile"]
    assert parts["recipe"]["results"][0]["exported"]["onnx"] < 1e-3
    assert parts["tests"]["results"][0]["collected"] >= 4


def test_a_part_ends_where_there_is_no_gpu(scripts):
    from gpu_chip import NO_GPU, device_of

    assert device_of(dry=True) == "cpu"
    with pytest.raises(SystemExit) as ended:  # the suite hides GPUs from itself
        device_of(dry=False)
    assert ended.value.code == NO_GPU


@pytest.mark.slow
def test_without_a_gpu_the_script_says_so():
    command = [SCRIPTS / "gpu_check", "--only", "machine", "--json", os.devnull]
    environment = os.environ | {"PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "torch finds no CUDA GPU; --dry runs on the CPU" in done.stderr
