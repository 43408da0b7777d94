"""The training loop: the plan of steps, exact losses on several processes, exact resume after a kill."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from trainer.context import models
from trainer.data import build_collection
from trainer.data.groups import Group
from trainer.errors import RunError
from trainer.model import Reranker, TokenizedCollection
from trainer.pipeline import open_run, run
from trainer.recipe import Train, load_recipe
from trainer.runtime.launch import check_launch
from trainer.training import (
    TrainingJob,
    checkpoints,
    default_rate,
    evaluation_steps,
    loop,
    rate_factor,
    steps,
    train_reranker,
)
from trainer.training.losses import LOSSES


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


@pytest.mark.parametrize(
    ("millions", "fresh", "ranks_already"),
    [
        (17, 5e-5, 3e-5),
        (33, 5e-5, 3e-5),
        (68, 3e-5, 1.8e-5),
        (110, 1.5e-5, 9e-6),
        (150, 1.5e-5, 9e-6),
        (400, 7e-6, 4.2e-6),
        (1000, 3e-6, 1.8e-6),
    ],
)
def test_rates_fall_with_size_and_depend_on_what_the_model_starts_from(millions, fresh, ranks_already):
    size = millions * 10**6
    assert default_rate(size, fresh_head=True, interaction=False) == pytest.approx(fresh)
    assert default_rate(size, fresh_head=True, interaction=True) == pytest.approx(2 * fresh)
    for interaction in (True, False):
        assert default_rate(size, fresh_head=False, interaction=interaction) == pytest.approx(ranks_already)


def losses(runs: Path) -> list[float]:
    lines = (runs / "tiny" / "train" / "metrics.jsonl").read_text().splitlines()
    return [row["loss"] for row in map(json.loads, lines) if "loss" in row]


def results(runs: Path) -> dict:
    return json.loads((runs / "tiny" / "evaluate" / "results.json").read_text())


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


LARGE = ("mine.negatives_per_positive=30", "mine.random_share=0.8")  # groups of 40 documents and 1,000 tokens and more


@pytest.mark.parametrize(
    ("loss", "mining", "several"),
    [
        pytest.param("listwise", (), (2,), marks=pytest.mark.slow),
        pytest.param("listwise", (), (4,), marks=pytest.mark.slow),
        pytest.param("pointwise", LARGE, (2,), marks=pytest.mark.slow),
    ],
)
def test_several_processes_give_the_losses_of_one(command, recipe_file, tmp_path, loss, mining, several):
    settings = [
        f"train.loss={loss}",
        *mining,
        "train.epochs=4",
        "train.evaluations_per_epoch=1",
        "train.queries_per_step=5",
        "train.tokens_per_pass=512",
    ]  # 24 groups: a short last step
    for processes in (1, *several):
        result = command(recipe_file, *settings, "--force", "--runs", tmp_path / str(processes), processes=processes)
        assert result.returncode == 0, result.stdout + result.stderr
    one, tuned = losses(tmp_path / "1"), results(tmp_path / "1")["systems"]["tuned"]
    assert len(one) == 20
    assert one[-1] < one[0]
    for processes in map(str, several):
        np.testing.assert_allclose(losses(tmp_path / processes), one, atol=1e-5)
        assert results(tmp_path / processes)["systems"]["tuned"] == tuned


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.slow)])
def test_killed_and_started_again_ends_with_the_same_bits(command, started, recipe_file, tmp_path, precision):
    words = [
        f"train.precision={precision}",
        "train.dropout=0.2",  # random numbers must go on where they were, not only batches
        "train.epochs=6",
        "train.evaluations_per_epoch=1",
        "train.checkpoint_steps=7",
        "--force",
    ]
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    assert command(recipe_file, *words, "--runs", undisturbed).returncode == 0

    with started([sys.executable, "-m", "trainer", recipe_file, *words, "--runs", killed]) as run:
        run.wait_for(lambda: list((killed / "tiny" / "train").glob("checkpoint-*[0-9]")))
        run.processes[0].kill()
    resumed = command(recipe_file, *words, "--runs", killed)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert "resumed at step" in resumed.stdout
    assert json.loads((killed / "tiny" / "train" / "done.json").read_text())["precision"] == precision

    assert losses(undisturbed) == losses(killed)
    assert len(losses(killed)) == 36
    ours, theirs = (weights(runs / "tiny" / "train" / "best") for runs in (undisturbed, killed))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.slow
def test_in_bf16_several_processes_give_the_losses_of_one_to_its_rounding(command, recipe_file, tmp_path):
    """A process computes other batches than one alone, whose bf16 products round otherwise: 2e-3 of losses near 2."""
    words = ["train.precision=bf16", "train.epochs=4", "train.queries_per_step=5", "train.tokens_per_pass=512"]
    for processes in (1, 2):
        result = command(recipe_file, *words, "--force", "--runs", tmp_path / str(processes), processes=processes)
        assert result.returncode == 0, result.stdout + result.stderr
    one = losses(tmp_path / "1")
    assert one[-1] < one[0]
    np.testing.assert_allclose(losses(tmp_path / "2"), one, atol=2e-3)


@pytest.mark.slow
def test_after_a_lost_process_the_run_resumes_with_the_same_bits_or_with_fewer_processes(
    command, started, recipe_file, tmp_path
):
    words = [
        "train.dropout=0.2",
        "train.epochs=6",
        "train.evaluations_per_epoch=1",
        "train.checkpoint_steps=4",
        "--force",
    ]
    undisturbed, killed, fewer = (tmp_path / name for name in ("undisturbed", "killed", "fewer"))
    done = command(recipe_file, *words, "--runs", undisturbed, processes=2)
    assert done.returncode == 0, done.stdout + done.stderr

    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "trainer"]
    with started([*launch, recipe_file, *words, "--runs", killed]) as run:
        run.wait_for(lambda: list((killed / "tiny" / "train").glob("checkpoint-*[0-9]")))
        workers = {worker.environ().get("RANK"): worker for worker in run.processes[0].children()}
        workers["0"].kill()  # the one that speaks for all as long as it is there
        (ended,) = run.finish()
    told = ended.stderr
    assert ended.returncode != 0
    assert told.count("another process of this run was lost") == 1
    assert "run the same command again to resume from the last checkpoint" in told
    assert "/trainer/" not in told, "no traceback of ours"
    shutil.copytree(killed, fewer)

    resumed = command(recipe_file, *words, "--runs", killed, processes=2)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert "resumed at step" in resumed.stdout
    assert losses(undisturbed) == losses(killed)
    ours, theirs = (weights(runs / "tiny" / "train" / "best") for runs in (undisturbed, killed))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)

    alone = command(recipe_file, *words, "--runs", fewer)
    assert alone.returncode == 0, alone.stdout + alone.stderr
    assert "2 processes before, 1 now: the same steps, but results may differ in the last bits" in alone.stdout
    assert len(losses(fewer)) == 36


def test_a_loss_that_is_not_finite_stops_and_saves_the_groups_of_the_step(command, recipe_file, tmp_path):
    result = command(recipe_file, "train.learning_rate=1e30", "train.epochs=4", "--runs", tmp_path / "runs")
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert "is not finite: the loss is nan" in result.stderr
    kept = json.loads((tmp_path / "runs" / "tiny" / "not_finite-train.json").read_text())
    assert len(kept) == 4
    assert all(document["text"] for group in kept for document in group["documents"])


@pytest.fixture
def train_here(recipe_file, beir, tmp_path):
    """`train_here(dev_scores, override, ...)` trains in this process on dev scores that are given beforehand."""
    collection = build_collection(load_recipe(recipe_file).data, tmp_path / "data")
    groups = [Group(query, [query], [1], [(query + row) % 40 for row in range(1, 29 + query)]) for query in range(8)]

    def train_here(dev_scores, *overrides):
        recipe = load_recipe(recipe_file, ["train.queries_per_step=2", "train.evaluations_per_epoch=4", *overrides])
        reranker = Reranker.load(recipe.reranker.model, max_length=32)
        tokenized = TokenizedCollection(collection, reranker.pairs)
        left = iter(dev_scores)
        (tmp_path / "train").mkdir(exist_ok=True)
        measure = lambda: next(left)  # noqa: E731
        accelerator = Accelerator(cpu=True)
        folder = tmp_path / "train"
        job = TrainingJob(recipe, groups, [], reranker, tokenized, measure, accelerator, folder, fresh_head=False)
        progress = train_reranker(job)
        return progress, list(left)

    return train_here


def test_early_stopping_is_the_same_in_a_run_killed_and_resumed(train_here, tmp_path):
    dev_scores = [0.1, 0.2, 0.4, 0.3, 0.4, 0.9]  # at steps 0, 1, 2 ...
    progress, left = train_here(dev_scores, "train.patience=2")
    assert left == [0.9]
    assert (progress.step, progress.best_step, progress.best_score) == (4, 2, 0.4)
    assert progress.ending == "stopped at step 4 of 8: no improvement since step 2"
    resumed, left = train_here([], "train.patience=2")
    assert resumed == progress
    steps_done = [json.loads(line)["step"] for line in (tmp_path / "train" / "metrics.jsonl").read_text().splitlines()]
    assert max(steps_done) == 4


class Killed(BaseException):
    """Stands for the end of the process: nothing catches it."""


@pytest.mark.parametrize(("killed_in", "best_step"), [("save_checkpoint", 1), ("commit_best", 2)])
def test_killed_around_a_checkpoint_the_best_model_is_the_one_recorded_in_the_checkpoint(
    train_here, tmp_path, monkeypatch, killed_in, best_step
):
    """Steps that are done again score less here, as they may on a GPU."""
    place = loop if killed_in == "save_checkpoint" else checkpoints
    whole = getattr(place, killed_in)

    def die_at_step_2(progress_or_folder, *arguments):
        step = progress_or_folder.step if place is loop else arguments[0]
        if step == 2:
            raise Killed
        return whole(progress_or_folder, *arguments)

    monkeypatch.setattr(place, killed_in, die_at_step_2)
    with pytest.raises(Killed):
        train_here([0.1, 0.6, 0.9])
    monkeypatch.undo()
    folder = tmp_path / "train"
    kept = weights({1: folder / "trained", 2: folder / ".best-0000002"}[best_step])
    progress, _ = train_here([0.5] * 7)
    assert (progress.best_step, progress.step) == (best_step, 8)
    assert all(torch.equal(weight, kept[name]) for name, weight in weights(folder / "trained").items())
    names = ["checkpoint-0000008", "metrics.jsonl", "start", "trained"]
    assert sorted(path.name for path in folder.iterdir()) == names


def test_without_patience_all_steps_are_done(train_here):
    progress, left = train_here([0.9, *[0.1] * 8])
    assert (progress.step, progress.best_step, progress.best_score, progress.ending, left) == (8, 1, 0.1, "", [])


@pytest.mark.parametrize("budget", [512, 16384])  # tokens: less than a group has, more than a step has
def test_a_gradient_that_is_not_finite_stops_before_it_spoils_the_weights(train_here, tmp_path, budget, monkeypatch):
    listwise = LOSSES["listwise"]

    def rootless(scores, labels, mask, teacher):
        """A number for every group, but for that of query 5 one without a gradient."""
        spoilt = mask.sum(dim=1) == 1 + 28 + 5
        return listwise(scores, labels, mask, teacher) + torch.where(spoilt, scores.sum(dim=1) * 0.0, 1.0).sqrt()

    monkeypatch.setitem(LOSSES, "listwise", rootless)
    plan = steps(8, Train(queries_per_step=2), seed=13)
    number = next(number for number, positions in enumerate(plan) if 5 in positions)
    fault = (
        rf"train: step {number + 1} is not finite: the loss is \d\.\d+ and the gradients' norm nan; .*learning_rate$"
    )
    with pytest.raises(RunError, match=fault):
        train_here([0.1] * 9, f"train.tokens_per_pass={budget}")
    kept = json.loads((tmp_path / "not_finite-train.json").read_text())
    assert [len(group["documents"]) for group in kept] == [29 + position for position in plan[number]]


def test_nan_scores_are_an_error_and_not_the_order_of_the_first_stage(recipe_file, tmp_path):
    recipe = load_recipe(recipe_file)
    run(recipe, tmp_path / "runs", until="retrieve")
    opened = open_run(recipe, tmp_path / "runs")
    reranker = models.load_base(opened)
    torch.nn.init.constant_(reranker.model.classifier.bias, torch.nan)
    with pytest.raises(RunError, match=r"dev: \d+ of \d+ scores of the model are not numbers"):
        models.measure(opened, "dev", reranker, TokenizedCollection(opened.collection, reranker.pairs))


def test_all_faults_of_the_fsdp_settings_are_reported_at_once():
    told = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}
    with pytest.raises(RunError) as caught:
        check_launch(told, cuda=False)
    assert [fault.split(":")[1].strip() for fault in caught.value.faults] == [
        "distributed_type",
        "fsdp_version",
        "fsdp_cpu_ram_efficient_loading",
    ]
    assert "fsdp_version: 1, but only version 2 is supported; set it to 2" in str(caught.value)
    check_launch({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, cuda=True)
    check_launch({}, cuda=False)


def test_weights_and_biases_offline_leaves_files(command, recipe_file, tmp_path):
    result = command(recipe_file, "track.mode=offline", "--force", "--runs", tmp_path / "runs")
    assert result.returncode == 0, result.stdout + result.stderr
    assert list((tmp_path / "runs" / "tiny" / "train" / "wandb").glob("offline-run-*/*.wandb"))


def test_frozen_layers_stay_as_they_are_and_the_others_learn(train_here, tiny, tmp_path):
    progress, _ = train_here([0.1 * step for step in range(9)], "train.frozen_layers=2")
    assert progress.best_step == 8
    trained, base = weights(tmp_path / "train" / "trained"), load_file(tiny["bert"] / "model.safetensors")
    same = {name: torch.equal(trained[f"encoder.{name}"], base[name]) for name in base if "pooler" not in name}
    for name, stayed in same.items():
        assert stayed == name.startswith(("embeddings.", "encoder.layer.0.", "encoder.layer.1.")), name


def test_more_frozen_layers_than_layers_is_an_error(command, recipe_file, tmp_path):
    result = command(recipe_file, "train.frozen_layers=9", "--runs", tmp_path / "runs")
    assert result.returncode == 2
    assert "train.frozen_layers: 9, but the model has 3 layers" in result.stderr
