"""The run folder: stages that are reused, run again, moved or refused; two runs at once; damage to every file."""

import gc
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer

from trainer.errors import RecipeError, RunError, TrainerError
from trainer.evaluation.results import Results
from trainer.evaluation.two_stage import mean_score
from trainer.model import Reranker
from trainer.pipeline import open_run, run
from trainer.recipe import Recipe, load_recipe
from trainer.runtime.lock import hold
from trainer.training import loop

STAGES = ("data", "retrieve", "mine", "train", "evaluate", "export")
# What a finished run is known by: the model that leaves, what it is measured by, and what it was made from.
OUTCOME = (
    "retrieve/train.npz",
    "mine/groups.json",
    "train/best/model.safetensors",
    "evaluate/results.json",
    "export/model/model.safetensors",
)


class Killed(BaseException):
    """Stands for the end of the process: nothing catches it."""


@pytest.fixture(scope="session")
def recipe_path(tmp_path_factory, shared_beir, tiny) -> Path:
    """A recipe with both engines, tuned, and a teacher, whose training makes dev better; a whole run takes seconds."""
    folder = tmp_path_factory.mktemp("small")
    SentenceTransformer(str(tiny["bert"]), device="cpu").save(str(folder / "bi-encoder"))
    path = folder / "small.yaml"
    path.write_text(
        f"""name: small
data: {{path: {shared_beir}}}
retriever: {{kind: hybrid, model: {folder / "bi-encoder"}, depth: 12, tune: on}}
mine: {{negatives_per_positive: 2, teacher: {tiny["reranker"]}, teacher_margin: null}}
reranker: {{model: {tiny["bert"]}, max_length: 32}}
train: {{queries_per_step: 8, learning_rate: 1.0e-3, evaluations_per_epoch: 3, precision: fp32}}
evaluate: {{metrics: [nDCG@10]}}
export: {{formats: []}}
"""
    )
    return path


@pytest.fixture(scope="session")
def small(recipe_path) -> Callable[..., Recipe]:
    """`small(override, ...)` is that recipe."""
    return lambda *overrides: load_recipe(recipe_path, overrides)


@pytest.fixture(scope="session")
def finished(tmp_path_factory, small) -> Path:
    """The runs folder of one finished run, never to be changed."""
    runs = tmp_path_factory.mktemp("finished") / "runs"
    run(small(), runs, force=True)
    gc.freeze()  # what is loaded by now stays; every training collects garbage, over all of it in half a second
    return runs


@pytest.fixture(scope="session")
def unfinished(tmp_path_factory, small) -> Path:
    """The runs folder of a run that was killed right after its first checkpoint, a step before the best state."""
    runs = tmp_path_factory.mktemp("unfinished") / "runs"
    train_to_the_first_checkpoint(small("train.checkpoint_steps=1"), runs)
    return runs


def train_to_the_first_checkpoint(recipe: Recipe, runs: Path) -> None:
    save = loop.save_checkpoint

    def save_and_die(*arguments) -> None:
        save(*arguments)
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "save_checkpoint", save_and_die)
        with pytest.raises(Killed):
            run(recipe, runs, until="train")


def copy(runs: Path, tmp_path: Path) -> Path:
    shutil.copytree(runs, tmp_path / "runs", symlinks=True)
    return tmp_path / "runs"


def outcome(runs: Path) -> dict[str, bytes]:
    return {name: (runs / "small" / name).read_bytes() for name in OUTCOME}


def stands(said: str) -> list[str]:
    return [line.split()[0] for line in said.splitlines() if "(up to date)" in line]


def files(runs: Path) -> list[str]:
    return sorted(str(path.relative_to(runs)) for path in runs.rglob("*") if path.is_file())


# What is reused, and what is done again.


def test_a_finished_run_is_skipped_completely_and_keeps_no_checkpoint(finished, small, tmp_path, capsys):
    runs = copy(finished, tmp_path)
    before = {name: (runs / name).stat().st_mtime_ns for name in files(runs)}
    started = time.process_time()
    run(small(), runs, force=True)
    assert time.process_time() - started < 1
    assert stands(capsys.readouterr().out) == list(STAGES)
    changed = {name for name in files(runs) if before.get(name) != (runs / name).stat().st_mtime_ns}
    assert changed <= {"small/.lock"}
    assert not list((runs / "small" / "train").glob("*checkpoint*"))


@pytest.mark.parametrize(
    "override",
    ["tokens_per_pass=512", "gradient_checkpointing=true", "checkpoint_steps=2", "compile=true"],
)
def test_a_key_that_does_not_change_the_result_changes_no_fingerprint(small, tmp_path, override):
    plain, other = (open_run(small(*keys), tmp_path) for keys in ([], [f"train.{override}"]))
    assert all(plain.records[name].fingerprint == other.records[name].fingerprint for name in STAGES)


@pytest.mark.parametrize(
    ("override", "first"),
    [
        ("data.dev_share=0.2", "data"),
        ("retriever.depth=5", "retrieve"),
        ("retriever.tune=off", "retrieve"),
        ("retriever.fusion=rrf", "retrieve"),
        ("reranker.depth=5", "mine"),
        ("evaluate.metrics=[RR@10]", "train"),
        ("mine.last_rank=20", "mine"),
        ("mine.teacher=null", "mine"),
        ("seed=14", "mine"),
        ("reranker.layers=[0, 3]", "train"),
        ("train.patience=3", "train"),
        ("train.precision=bf16", "train"),
        ("evaluate.metrics=[nDCG@10, AP]", "evaluate"),
        ("export.formats=[onnx]", "export"),
    ],
)
def test_a_key_that_changes_the_result_changes_the_fingerprints_from_its_stage_on(small, tmp_path, override, first):
    plain, other = (open_run(small(*keys), tmp_path) for keys in ([], [override]))
    changed = [name for name in STAGES if plain.records[name].fingerprint != other.records[name].fingerprint]
    assert changed == list(STAGES[STAGES.index(first) :])


@pytest.mark.parametrize(
    ("setting", "unused"),
    [
        ("retriever.kind=bm25", "retriever.max_length=8"),
        ("retriever.kind=bm25", "retriever.index=flat"),
        ("retriever.kind=dense", "retriever.language=german"),
        ("retriever.kind=dense", "retriever.tune=off"),
        ("retriever.kind=bm25", "retriever.fusion=rrf"),
        ("retriever.tune=off", "retriever.fusion=rrf"),
        ("mine.teacher=null", "mine.teacher_margin=1.0"),
    ],
)
def test_a_key_that_nothing_reads_changes_no_fingerprint(small, tmp_path, setting, unused):
    plain, other = (open_run(small(setting, *keys), tmp_path) for keys in ([], [unused]))
    assert plain.records["export"].fingerprint == other.records["export"].fingerprint


def test_an_explicit_default_depth_changes_nothing(small, tmp_path):
    plain, other = (open_run(small(*keys), tmp_path) for keys in ([], ["reranker.depth=12"]))
    assert plain.records["export"].fingerprint == other.records["export"].fingerprint


def test_a_killed_training_resumes_with_the_advised_memory_settings(unfinished, finished, small, tmp_path, capsys):
    runs = copy(unfinished, tmp_path)
    advised = ("train.tokens_per_pass=4096", "train.gradient_checkpointing=true", "train.checkpoint_steps=9")
    run(small(*advised), runs, until="train")
    assert "resumed at step 1" in capsys.readouterr().out
    recipe = json.loads((runs / "small" / "train" / "recipe.json").read_text())
    assert recipe["train"]["tokens_per_pass"] == 4096
    ours, theirs = (load_file(folder / "small" / "train" / "best" / "model.safetensors") for folder in (runs, finished))
    for name, weight in theirs.items():
        torch.testing.assert_close(ours[name], weight, msg=name)


def test_a_killed_training_resumes_to_bitwise_the_same_model(unfinished, finished, small, tmp_path):
    runs = copy(unfinished, tmp_path)
    run(small(), runs, force=True)
    assert outcome(runs) == outcome(finished)


def test_a_model_is_compared_with_the_tuned_first_stage(finished, small):
    opened = open_run(small(), finished)
    tuned, default = opened.candidates("dev"), opened.default_candidates("dev")
    assert default is not None
    scores = [mean_score(opened.collection, "dev", one, "nDCG@10") for one in (tuned, default)]
    assert scores[0] != scores[1]
    noted = json.loads((finished / "small" / "evaluate" / "done.json").read_text())["dev"]
    assert noted["first_stage"] == pytest.approx(scores[0])
    systems = Results.load(finished / "small" / "evaluate").systems
    found = {"first_stage": opened.candidates("test"), "first_stage_default": opened.default_candidates("test")}
    for name, candidates in found.items():
        assert candidates is not None
        for metric in ("nDCG@10", "R@12"):
            mean = mean_score(opened.collection, "test", candidates, metric)
            assert systems[name][metric].mean == pytest.approx(mean)


# Finished work is never deleted without a word.


def test_a_finished_stage_of_other_keys_is_moved_and_the_terminal_says_why(finished, small, tmp_path, capsys):
    runs = copy(finished, tmp_path)
    folder, model = runs / "small", outcome(finished)["train/best/model.safetensors"]
    old = json.loads((folder / "train" / "done.json").read_text())["fingerprint"][:8]
    run(small("train.epochs=2", "train.dropout=0.1"), runs, force=True)
    said = " ".join(capsys.readouterr().out.split())
    assert "train train.epochs changed from 1 to 2, train.dropout changed from 0.0 to 0.1; the stage runs again" in said
    assert f"its old result is now in {folder}/train.{old}" in said
    assert (folder / f"train.{old}" / "best" / "model.safetensors").read_bytes() == model
    assert (folder / "train" / "best" / "model.safetensors").read_bytes() != model
    assert json.loads((folder / f"train.{old}" / "recipe.json").read_text())["train"]["epochs"] == 1
    assert json.loads((folder / "train" / "recipe.json").read_text())["train"]["epochs"] == 2

    new = json.loads((folder / "train" / "done.json").read_text())["fingerprint"][:8]
    run(small("train.epochs=3"), runs, until="train")
    assert [path.name for path in folder.glob("train.*")] == [f"train.{new}"]  # the last one is kept


def test_a_changed_input_is_named(finished, small, tmp_path, tiny, capsys):
    runs = copy(finished, tmp_path)
    other = shutil.copytree(tiny["reranker"], tmp_path / "teacher")
    config = other / "config.json"
    config.write_text(config.read_text().replace('"layer_norm_eps": 1e-12', '"layer_norm_eps": 0.1'))
    run(small(f"mine.teacher={other}"), runs, until="mine")
    assert "mine the content of mine.teacher changed; the stage runs again" in " ".join(capsys.readouterr().out.split())


def test_a_run_that_fails_leaves_the_finished_model(finished, small, tmp_path):
    runs = copy(finished, tmp_path)
    with pytest.raises(RunError, match="is not finite|are not numbers"):
        run(small("train.learning_rate=1e30", "train.epochs=4"), runs, force=True)
    with pytest.raises(RunError, match="is not finite|are not numbers"):  # nor does a second failure delete it
        run(small("train.learning_rate=2e30", "train.epochs=4"), runs, force=True)
    (kept,) = (runs / "small").glob("train.*")
    reference = outcome(finished)
    assert (kept / "best" / "model.safetensors").read_bytes() == reference["train/best/model.safetensors"]
    assert (runs / "small" / "export" / "model" / "model.safetensors").read_bytes() == reference[OUTCOME[-1]]
    assert json.loads((runs / "small" / "export" / "recipe.json").read_text())["train"]["learning_rate"] == 0.001


def test_unfinished_work_of_other_keys_is_deleted_and_reported(unfinished, small, tmp_path, capsys):
    runs = copy(unfinished, tmp_path)
    run(small("train.learning_rate=0.02"), runs, until="train")
    said = " ".join(capsys.readouterr().out.split())
    assert "train train.learning_rate changed from 0.001 to 0.02; unfinished work is deleted" in said
    assert "resumed" not in said


@pytest.mark.slow
def test_later_stages_run_again_after_a_repaired_stage_with_another_result(finished, small, tmp_path, capsys):
    runs = copy(finished, tmp_path)
    (runs / "small" / "train" / "best" / "config.json").unlink()
    settings = ("train.tokens_per_pass=512",)
    with pytest.MonkeyPatch.context() as patch:  # as another device would train it
        rates = loop.rate_factor
        patch.setattr(loop, "rate_factor", lambda *arguments: rates(*arguments) * 1.01)
        run(small(*settings), runs, force=True)
    said = capsys.readouterr().out
    assert stands(said) == ["data", "retrieve", "mine"]
    assert "the result of train changed; the stage runs again" in " ".join(said.split())
    for name in ("train/best", "export/model"):
        model = (runs / "small" / name / "model.safetensors").read_bytes()
        assert model != (finished / "small" / name / "model.safetensors").read_bytes()


# Linked, foreign and undeletable folders.


def test_a_linked_stage_folder_is_cleared_and_the_link_is_kept(finished, unfinished, small, tmp_path, capsys):
    for runs, other in ((copy(finished, tmp_path / "a"), "a"), (copy(unfinished, tmp_path / "b"), "b")):
        scratch, stage = tmp_path / other / "scratch", runs / "small" / "train"
        stage.rename(scratch)
        stage.symlink_to(scratch)
        run(small("train.learning_rate=0.02"), runs, until="train")
        assert "resumed" not in capsys.readouterr().out
        assert stage.is_symlink()
        assert (scratch / "best" / "model.safetensors").is_file()
    fresh = tmp_path / "fresh"
    run(small("train.learning_rate=0.02"), fresh, until="train")
    best = "small/train/best/model.safetensors"
    assert {(tmp_path / other / "runs" / best).read_bytes() for other in "ab"} == {(fresh / best).read_bytes()}
    (kept,) = (tmp_path / "a" / "runs" / "small").glob("train.*")
    assert (kept / "best" / "model.safetensors").read_bytes() == (finished / best).read_bytes()


def test_a_checkpoint_of_another_recipe_is_never_resumed(unfinished, small, tmp_path, capsys):
    runs, other = copy(unfinished, tmp_path / "a"), tmp_path / "b" / "runs"
    train_to_the_first_checkpoint(small("train.learning_rate=0.02", "train.checkpoint_steps=1"), other)
    stage = other / "small" / "train"
    for path in stage.glob("checkpoint-*"):
        shutil.rmtree(path)
    shutil.copytree(runs / "small" / "train" / "checkpoint-0000001", stage / "checkpoint-0000001")
    run(small("train.learning_rate=0.02"), other, until="train")
    said = capsys.readouterr().out
    assert "checkpoint-0000001 was made with other inputs; checkpoint-0000001 is deleted" in " ".join(said.split())
    assert "resumed" not in said


def test_a_dangling_link_or_a_file_instead_of_a_folder_is_named(finished, small, tmp_path):
    runs = copy(finished, tmp_path)
    stage = runs / "small" / "train"
    shutil.rmtree(stage)
    stage.symlink_to(tmp_path / "nowhere")
    with pytest.raises(RunError, match="small/train: a link to .*/nowhere, which does not exist"):
        run(small(), runs, until="train")
    stage.unlink()
    stage.write_text("mine")
    with pytest.raises(RunError, match="small/train: cannot be used as a folder"):
        run(small(), runs, until="train")
    assert stage.read_text() == "mine"


def test_a_run_folder_that_is_a_file_is_named(small, tmp_path):
    (tmp_path / "small").write_text("mine")
    with pytest.raises(TrainerError, match="small"):
        run(small(), tmp_path, until="data")
    assert (tmp_path / "small").read_text() == "mine"


# One run at a time.

RUN = """
import sys
from pathlib import Path
from trainer.commands import cli
sys.argv = ["train", *sys.argv[1:]]
cli.train_command()
"""


def test_a_second_run_of_the_name_is_refused_and_the_first_is_undisturbed(finished, small, tmp_path, recipe_path):
    runs = copy(finished, tmp_path)
    with hold(runs / "small" / ".lock", "run"):
        for overrides in ([], ["train.epochs=2"]):
            with pytest.raises(RunError) as caught:
                run(small(*overrides), runs, force=True)
            assert len(caught.value.faults) == 1
            assert f"process {os.getpid()} on " in str(caught.value)
            assert "another run is using it" in str(caught.value)
        with pytest.raises(RunError, match="another run is using it"):
            run(small(), runs, until="mine")
        command = [sys.executable, "-c", RUN, str(recipe_path), "name=small", "--runs", str(runs)]
        refused = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert refused.returncode == 2
    assert len(refused.stderr.strip().splitlines()) == 1
    assert f"process {os.getpid()} on " in refused.stderr
    assert outcome(runs) == outcome(finished)
    run(small(), runs, force=True)  # nobody holds it any more


HOLD = """
import sys, time
from pathlib import Path
from trainer.runtime.lock import hold
with hold(Path(sys.argv[1]), "run"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_lock_ends_whenever_its_holder_ends(tmp_path):
    path = tmp_path / "small" / ".lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(RunError, match=f"process {holder.pid} on "), hold(path, "run"):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    holder.stdout.close()
    with hold(path, "run"):
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert path.read_text() == ""


@pytest.mark.slow
def test_two_runs_at_once_share_embeddings_and_answers(recipe_path, finished, tmp_path, started):
    command = [sys.executable, "-c", RUN, recipe_path, "--runs", tmp_path, "--force"]
    with started(*([*command, f"name={name}"] for name in ("one", "two", "one"))) as several:
        ended = several.finish(grace=math.inf)  # one of the two runs of one name is refused
    assert sorted(run.returncode for run in ended) == [0, 0, 2], ended
    model = outcome(finished)["train/best/model.safetensors"]
    for name in ("one", "two"):
        assert (tmp_path / name / "train" / "best" / "model.safetensors").read_bytes() == model
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.slow
def test_two_processes_agree_about_damage_and_are_refused_together(finished, recipe_path, tmp_path, command):
    runs = copy(finished, tmp_path)
    for path in (*runs.glob(".embeddings/*/*.npy"), *runs.glob(".teachers/*/*.npz")):
        cut(path)
    for stage in ("retrieve", "mine"):
        shutil.rmtree(runs / "small" / stage)
    with hold(runs / "small" / ".lock", "run"):
        refused = command(recipe_path, "--runs", runs, "--force", processes=2)
    assert refused.returncode != 0
    assert refused.stderr.count("another run is using it") == 1
    repaired = command(recipe_path, "--runs", runs, "--force", processes=2)
    assert repaired.returncode == 0, repaired.stdout + repaired.stderr
    assert repaired.stdout.count("damaged embeddings; they are computed again") == 2  # of queries and of documents
    again = command(recipe_path, "--runs", runs, "--force", processes=2)
    assert stands(again.stdout) == list(STAGES)


# Damage: each file of a finished and of an unfinished run.


def cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES = [cut, *(pytest.param(damage, marks=pytest.mark.slow) for damage in (empty, zero, directory))]
MODEL = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
FINISHED = [
    *(f"data/{name}.arrow" for name in ("documents", "queries", "qrels", "twins", "self_documents")),
    *("data/settings.json", "check.json"),
    *(f"retrieve/{name}.npz" for name in ("train", "dev", "test", "default-dev", "default-test")),
    "retrieve/tuning.json",
    *(f"mine/{name}" for name in ("groups.json", "report.json", "report.md", "suspected_false_negatives.jsonl")),
    *(f"train/{model}/{name}" for model in ("start", "best") for name in MODEL),
    *("train/metrics.jsonl", "train/fitted.json", "train/between.json"),
    *(f"evaluate/{name}.trec" for name in ("first_stage", "first_stage_default", "fitted", "tuned", "fused")),
    *(f"evaluate/{name}" for name in ("results.json", "dev.json", "fusion.json", "depths.json", "queries.jsonl")),
    "evaluate/calibration_test.json",
    *(f"export/model/{name}" for name in ("config.json", "model.safetensors", "tokenizer.json", "README.md")),
    "export/model/sentence_bert_config.json",
    *(f"export/model/{name}" for name in ("tokenizer_config.json", "interaction.py", "fusion.json", "splits.json")),
    "report.md",
    *(f"{stage}/{name}" for stage in STAGES for name in ("begun.json", "done.json", "recipe.json")),
]
TRAINING = [
    *(f"{model}/{name}" for model in ("start", "trained") for name in MODEL),
    *("fitted.json", "metrics.jsonl", "begun.json", "recipe.json"),
    *(f"checkpoint-0000001/{name}" for name in ("model.safetensors", "optimizer.bin", "random_states_0.pkl")),
    "checkpoint-0000001/progress.json",
]


def test_every_file_of_a_run_is_covered_by_the_damage_tests(finished, unfinished):
    own = {name.removeprefix("small/") for name in files(finished) if name.startswith("small/")}
    assert own - {".lock", "report.html", "forecast.json"} == set(FINISHED)
    own = {str(path.relative_to(unfinished / "small" / "train")) for path in (unfinished / "small/train").rglob("*")}
    assert {name for name in own if (unfinished / "small" / "train" / name).is_file()} == set(TRAINING)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FINISHED)
def test_a_damaged_file_of_a_finished_run_is_repaired(finished, small, tmp_path, capsys, name, damage):
    runs = copy(finished, tmp_path)
    path = runs / "small" / name
    before = path.read_bytes()
    damage(path)
    run(small(), runs, force=True)
    assert outcome(runs) == outcome(finished)
    said = " ".join(capsys.readouterr().out.split())
    is_result = path.name not in (
        "begun.json",
        "recipe.json",
        "metrics.jsonl",
        "report.md",
        "report.html",
        "README.md",
    ) + (
        "suspected_false_negatives.jsonl",
        "check.json",
    )
    assert (f"{path} " in said) == is_result, said
    if is_result and path.name != "done.json":
        assert path.read_bytes() == before
    capsys.readouterr()
    run(small(), runs, force=True)
    assert stands(capsys.readouterr().out) == list(STAGES)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", TRAINING)
def test_a_damaged_file_of_a_killed_training_never_gives_another_model(
    unfinished, finished, small, tmp_path, capsys, name, damage
):
    runs = copy(unfinished, tmp_path)
    path = runs / "small" / "train" / name
    damage(path)
    run(small(), runs, until="train")
    ours, theirs = (folder / "small" / "train" / "best" / "model.safetensors" for folder in (runs, finished))
    assert ours.read_bytes() == theirs.read_bytes()
    said = " ".join(capsys.readouterr().out.split())
    harmless = path.name in ("metrics.jsonl", "recipe.json")
    assert ("resumed at step 1" in said) == harmless
    assert (str(path) in said or "without a readable begun.json" in said) == (not harmless)


@pytest.mark.parametrize("damage", [cut, empty, zero, directory])
@pytest.mark.parametrize("kind", [".embeddings", ".teachers"])
def test_a_damaged_cache_is_rebuilt(finished, small, tmp_path, capsys, kind, damage):
    runs = copy(finished, tmp_path)
    for path in sorted((runs / kind).glob("*/*.np?")):
        damage(path)
    for stage in ("retrieve", "mine"):
        shutil.rmtree(runs / "small" / stage)
    run(small(), runs, force=True)
    assert outcome(runs) == outcome(finished)
    said = " ".join(capsys.readouterr().out.split())
    assert {".embeddings": "damaged embeddings; they are computed again", ".teachers": "is damaged; it is deleted"}[
        kind
    ] in said
    for path in (finished / kind).glob("*/*.npy"):
        assert (runs / path.relative_to(finished)).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("missing", ["export/model", "train/best", "data"])
def test_a_missing_folder_is_rebuilt(finished, small, tmp_path, missing):
    runs = copy(finished, tmp_path)
    shutil.rmtree(runs / "small" / missing)
    run(small(), runs, force=True)
    assert outcome(runs) == outcome(finished)


def test_manual_labels_in_the_file_of_likely_false_negatives_are_kept(finished, small, tmp_path, capsys):
    runs = copy(finished, tmp_path)
    path = runs / "small" / "mine" / "suspected_false_negatives.jsonl"
    path.write_text('{"query_id": "q-probe-0", "document_id": "disk-1", "relevant": true}\n')
    run(small(), runs, force=True)
    assert stands(capsys.readouterr().out) == list(STAGES)
    assert '"relevant": true' in path.read_text()
    run(small("mine.last_rank=20"), runs, until="mine")
    (kept,) = (runs / "small").glob("mine.*")
    assert '"relevant": true' in (kept / path.name).read_text()


def test_judgements_in_the_folder_of_a_stage_are_refused(finished, small, tmp_path):
    runs = copy(finished, tmp_path)
    path = runs / "small" / "mine" / "suspected_false_negatives.jsonl"
    with pytest.raises(RecipeError, match="data.judgements: .*jsonl is in the folder of a stage"):
        run(small(f"data.judgements={path}"), runs)
    run(small(f"data.judgements={path.rename(runs / 'small' / 'judgements.jsonl')}"), runs, until="data")


def test_later_stages_that_do_not_run_again_are_named(finished, small, tmp_path, capsys):
    runs = copy(finished, tmp_path)
    run(small("mine.last_rank=20"), runs, until="mine")
    stale = "out of date, made from other inputs (see recipe.json in each)"
    assert f"{stale}: train, evaluate, export" in capsys.readouterr().out
    run(small("mine.last_rank=20"), runs, until="evaluate")
    assert f"{stale}: export" in capsys.readouterr().out


# Smaller promises.


def test_a_wrong_stage_is_refused(small, tmp_path):
    with pytest.raises(RecipeError, match="until: 'trian' is not a stage; did you mean train?"):
        run(small(), tmp_path, until="trian")
    assert not list(tmp_path.iterdir())


def test_the_optimizer_is_freed_before_evaluation(finished, small, tmp_path):
    runs = copy(finished, tmp_path)
    shutil.rmtree(runs / "small" / "train")
    before = optimizers()
    run(small(), runs, until="train")
    assert optimizers() <= before


def optimizers() -> set[int]:
    gc.collect()
    return {id(thing) for thing in gc.get_objects() if issubclass(type(thing), torch.optim.Optimizer)}


def test_saving_over_a_model_never_loses_both(tiny, tmp_path):
    reranker, folder = Reranker.load(tiny["reranker"]), tmp_path / "model"
    reranker.save(folder)
    saved = (folder / "model.safetensors").read_bytes()
    folder.rename(tmp_path / ".model.old")  # killed between the two renames
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reranker.model, "save_pretrained", lambda *_, **__: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            reranker.save(folder)
    assert (folder / "model.safetensors").read_bytes() == saved
    reranker.save(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
