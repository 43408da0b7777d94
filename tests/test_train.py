"""The training loop: the plan of steps, exact losses on several processes, exact resume after a kill."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from trainer.recipe import Train
from trainer.train import default_rate, evaluation_steps, rate_factor, steps


def test_every_group_is_seen_once_in_each_epoch():
    plan = steps(10, Train(epochs=3, queries_per_step=4), seed=1)
    assert [len(step) for step in plan] == [4, 4, 2] * 3
    epochs = [sum(plan[start : start + 3], []) for start in (0, 3, 6)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert plan == steps(10, Train(epochs=3, queries_per_step=4), seed=1)


def test_dev_is_measured_evenly_and_at_the_end():
    assert evaluation_steps(10, Train(epochs=1, evaluations_per_epoch=2)) == {5, 10}
    assert max(evaluation_steps(7, Train(epochs=2, evaluations_per_epoch=3))) == 7


def test_rate_rises_then_falls_to_nearly_zero():
    factors = [rate_factor(step, 20, 0.2) for step in range(20)]
    assert factors[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])  # 4 warm-up steps, then 16 of decay
    assert factors[-1] == pytest.approx(1 / 16)
    assert all(earlier >= later for earlier, later in zip(factors[4:], factors[5:], strict=False))


def test_what_ranks_already_gets_a_gentler_rate_than_a_fresh_classifier():
    assert default_rate(22_000_000, fresh_classifier=False) < default_rate(22_000_000, fresh_classifier=True)
    assert default_rate(500_000_000, fresh_classifier=True) < default_rate(100_000_000, fresh_classifier=True)


def losses(runs: Path) -> list[float]:
    lines = (runs / "tiny" / "train" / "metrics.jsonl").read_text().splitlines()
    return [row["loss"] for row in map(json.loads, lines) if "loss" in row]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("loss", ["listwise", "pointwise"])
def test_two_processes_give_the_losses_of_one(command, recipe_file, tmp_path, loss):
    settings = [
        f"train.loss={loss}",
        "train.queries_per_step=5",
        "train.tokens_per_pass=512",
    ]  # 24 groups: a short last step
    for processes in (1, 2):
        result = command(recipe_file, *settings, "--force", "--runs", tmp_path / str(processes), processes=processes)
        assert result.returncode == 0, result.stdout + result.stderr
    one, two = losses(tmp_path / "1"), losses(tmp_path / "2")
    assert len(one) == 10
    np.testing.assert_allclose(one, two, atol=1e-5)
    assert one[-1] < one[0]
    scored = [json.loads((tmp_path / runs / "tiny" / "evaluate" / "results.json").read_text()) for runs in ("1", "2")]
    assert scored[0]["systems"]["tuned"] == scored[1]["systems"]["tuned"]


def test_passes_under_the_token_budget_change_nothing(command, recipe_file, tmp_path):
    for budget in ("512", "65536"):
        result = command(recipe_file, f"train.tokens_per_pass={budget}", "--force", "--runs", tmp_path / budget)
        assert result.returncode == 0, result.stdout + result.stderr
    np.testing.assert_allclose(losses(tmp_path / "512"), losses(tmp_path / "65536"), atol=1e-5)


def test_killed_and_started_again_ends_with_the_same_bits(command, recipe_file, tmp_path):
    words = [
        "train.dropout=0.2",  # random numbers must go on where they were, not only batches
        "train.epochs=20",
        "train.evaluations_per_epoch=1",
        "train.checkpoint_steps=7",
        "--force",
    ]
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    assert command(recipe_file, *words, "--runs", undisturbed).returncode == 0

    started = subprocess.Popen(
        [sys.executable, "-m", "trainer", str(recipe_file), *words, "--runs", str(killed)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not list((killed / "tiny" / "train").glob("checkpoint-000003*")):
        assert time.monotonic() < deadline, "no checkpoint came"
        assert started.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)
    started.send_signal(signal.SIGKILL)
    started.wait()
    resumed = command(recipe_file, *words, "--runs", killed)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert "resumed at step" in resumed.stdout

    assert losses(undisturbed) == losses(killed)
    for part in ("train/best", "train/checkpoint-0000120"):
        ours, theirs = weights(undisturbed / "tiny" / part), weights(killed / "tiny" / part)
        assert all(torch.equal(ours[name], theirs[name]) for name in ours), part


def test_a_loss_that_is_not_finite_stops_and_keeps_the_step(command, recipe_file, tmp_path):
    result = command(recipe_file, "train.learning_rate=1e30", "train.epochs=4", "--runs", tmp_path / "runs")
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert "the loss of step" in result.stderr
    assert (tmp_path / "runs" / "tiny" / "train" / "not_finite.json").is_file()


def test_weights_and_biases_offline_leaves_files(command, recipe_file, tmp_path):
    result = command(recipe_file, "track.mode=offline", "--force", "--runs", tmp_path / "runs")
    assert result.returncode == 0, result.stdout + result.stderr
    assert list((tmp_path / "runs" / "tiny" / "train" / "wandb").glob("offline-run-*/*.wandb"))


def test_frozen_layers_stay_as_they_are_and_the_others_learn(command, recipe_file, tiny, tmp_path):
    result = command(recipe_file, "train.frozen_layers=2", "--force", "--runs", tmp_path / "runs")
    assert result.returncode == 0, result.stdout + result.stderr
    (checkpoint,) = (tmp_path / "runs" / "tiny" / "train").glob("checkpoint-*")
    trained, base = weights(checkpoint), load_file(tiny["bert"] / "model.safetensors")
    same = {name: torch.equal(trained[f"model.encoder.{name}"], base[name]) for name in base if "pooler" not in name}
    for name, stayed in same.items():
        assert stayed == name.startswith(("embeddings.", "encoder.layer.0.", "encoder.layer.1.")), name


def test_more_frozen_layers_than_there_are_is_told(command, recipe_file, tmp_path):
    result = command(recipe_file, "train.frozen_layers=9", "--runs", tmp_path / "runs")
    assert result.returncode == 2
    assert "train.frozen_layers: 9, but the model has 3 layers" in result.stderr
