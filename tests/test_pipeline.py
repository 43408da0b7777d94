"""The whole path on tiny models, as a user runs it: what is done, skipped and refused."""

import json
import shutil
import sys

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from trainer import context
from trainer.data.groups import read_groups
from trainer.evaluation import query_scores
from trainer.model import Reranker, TokenizedCollection
from trainer.pipeline import open_run, run
from trainer.recipe import load_recipe
from trainer.retriever import embeddings


def test_a_second_run_skips_everything_and_a_change_redoes_from_there(command, recipe_file, tmp_path):
    runs = tmp_path / "runs"
    first = command(recipe_file, "--runs", runs, "--force")
    assert first.returncode == 0, first.stdout + first.stderr
    assert "(up to date)" not in first.stdout
    for name in ("data", "retrieve", "mine", "train", "evaluate", "export"):
        notes = json.loads((runs / "tiny" / name / "done.json").read_text())
        assert notes["seconds"] >= 0
        assert notes["versions"]["torch"]

    second = command(recipe_file, "--runs", runs, "--force")
    assert second.stdout.count("(up to date)") == 6
    assert "ceiling" in second.stdout  # the table is shown again

    third = command(recipe_file, "mine.negatives_per_positive=3", "--runs", runs, "--force")
    assert third.returncode == 0, third.stdout + third.stderr
    assert third.stdout.count("(up to date)") == 2  # data and retrieve


def test_the_smallest_detectable_difference_is_printed_before_training_and_not_again(exported, tiny, capsys):
    recipe, runs = exported
    opened = open_run(load_recipe(recipe), runs)
    reranker = Reranker.load(tiny["reranker"], device="cpu", max_length=32)  # random, so unlike the first stage
    measure = context.dev_measure(opened, reranker, TokenizedCollection(opened.collection, reranker.pairs))
    assert measure() == measure()
    collection, dev = opened.collection, opened.candidates("dev")
    texts = collection.query_texts(dev.queries.tolist())
    scores = np.full(dev.documents.shape, -np.inf)
    for index, text in enumerate(texts):
        passages = collection.passages(dev.found(index))
        scores[index, : len(passages)] = reranker.score([(text, passage) for passage in passages])
    ours = query_scores(collection, "dev", dev, "nDCG@10", scores)
    first = query_scores(collection, "dev", dev, "nDCG@10")
    differences = [ours[query] - first[query] for query in ours]
    least = 2.8 * np.std(differences, ddof=1) / np.sqrt(8)
    assert least > 0.01
    printed = capsys.readouterr().out
    assert printed.count("can be detected") == 1
    assert f"differences of {least:.3f} nDCG@10 or more to the first stage can be detected with these 8 dev" in printed


def test_a_changed_document_is_noticed(command, recipe_file, beir, tmp_path):
    words = (recipe_file, "retriever.depth=10", "--runs", tmp_path / "runs", "--force")
    assert command(*words).returncode == 0
    corpus = beir / "corpus.jsonl"
    corpus.write_text(corpus.read_text().replace("inodes", "blocks", 1))
    again = command(*words)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "(up to date)" not in again.stdout


def test_a_base_that_is_a_reranker_has_a_row_in_the_table(command, recipe_file, tiny, tmp_path):
    words = (
        f"reranker.model={tiny['reranker']}",
        "reranker.lexical_signals=false",
        "--runs",
        tmp_path / "runs",
        "--force",
    )
    result = command(recipe_file, *words)
    assert result.returncode == 0, result.stdout + result.stderr
    results = json.loads((tmp_path / "runs" / "tiny" / "evaluate" / "results.json").read_text())
    assert list(results["systems"]) == ["first_stage", "base", "fused", "ceiling"]  # training did not help
    assert (results["shipped"], results["verdict"]) == ("base", "worse")  # BM25 is far better
    config = json.loads((tmp_path / "runs" / "tiny" / "export" / "model" / "config.json").read_text())
    assert config["architectures"] == ["BertForSequenceClassification"]


def test_a_model_that_is_no_better_is_not_exported(command, recipe_file, tmp_path):
    result = command(recipe_file, "--runs", tmp_path / "runs")  # a random model under a good first stage
    assert result.returncode == 3
    assert "Traceback" not in result.stderr
    assert "export: worse: on dev, the model alone -" in result.stderr
    assert "against the first stage" in result.stderr
    assert not (tmp_path / "runs" / "tiny" / "export").exists()


@pytest.fixture
def bi_encoder(tiny, tmp_path):
    folder = tmp_path / "bi-encoder"
    SentenceTransformer(str(tiny["bert"]), device="cpu").save(str(folder))
    return folder


SMALL_SHARDS = """
import sys
from pathlib import Path
from trainer.pipeline import run
from trainer.recipe import load_recipe
from trainer.retriever import embeddings
embeddings.SHARD = 1
run(load_recipe(sys.argv[1], sys.argv[3:]), Path(sys.argv[2]), until="mine")
"""


@pytest.mark.slow
def test_a_run_killed_while_embedding_resumes_with_the_missing_shards(
    recipe_file, bi_encoder, tmp_path, monkeypatch, capsys, started
):
    words = ["retriever.kind=dense", f"retriever.model={bi_encoder}"]
    monkeypatch.setattr(embeddings, "SHARD", 1)

    def shards(runs):
        return {path: path.stat().st_mtime_ns for path in (runs / ".embeddings").glob("*/*.npy") if path.name[0] != "."}

    run(load_recipe(recipe_file, words), tmp_path / "undisturbed", until="mine")
    assert "40 of 40 shards of documents embedded" in capsys.readouterr().out

    killed = tmp_path / "killed"
    with started([sys.executable, "-c", SMALL_SHARDS, recipe_file, killed, *words]) as other:
        other.wait_for(lambda: len(shards(killed)) >= 45)  # 40 judged queries come first
        other.processes[0].kill()
    before = shards(killed)

    run(load_recipe(recipe_file, words), killed, until="mine")
    assert f"{80 - len(before)} of 40 shards of documents embedded" in capsys.readouterr().out
    assert all(shards(killed)[path] == time for path, time in before.items())
    groups = [(runs / "tiny" / "mine" / "groups.json").read_text() for runs in (tmp_path / "undisturbed", killed)]
    assert groups[0] == groups[1]


@pytest.mark.slow
def test_another_bi_encoder_in_the_same_folder_encodes_again(command, recipe_file, bi_encoder, tiny, tmp_path):
    words = (
        recipe_file,
        "retriever.kind=dense",
        f"retriever.model={bi_encoder}",
        "--runs",
        tmp_path / "runs",
        "--force",
    )
    first = command(*words)
    assert first.returncode == 0, first.stdout + first.stderr
    shutil.rmtree(bi_encoder)
    SentenceTransformer(str(tiny["roberta"]), device="cpu").save(str(bi_encoder))
    second = command(*words)
    assert second.returncode == 0, second.stdout + second.stderr
    assert "1 of 1 shards of documents embedded" in second.stdout


@pytest.mark.slow
def test_two_processes_embed_ask_the_teacher_and_distil_like_one(command, recipe_file, bi_encoder, tiny, tmp_path):
    words = (
        *(f"retriever.model={bi_encoder}", "retriever.kind=hybrid", f"mine.teacher={tiny['reranker']}"),
        "distil={queries: 40, depth: 4, queries_per_step: 9}",
    )
    for processes in (1, 2):
        result = command(
            recipe_file, *words, "train.loss=kl", "--force", "--runs", tmp_path / str(processes), processes=processes
        )
        assert result.returncode == 0, result.stdout + result.stderr
    one, two = (read_groups(tmp_path / runs / "tiny" / "mine") for runs in "12")
    assert [group.documents for group in one] == [group.documents for group in two]
    scores = [[score for group in groups for score in group.teacher or []] for groups in (one, two)]
    assert len(scores[0]) == sum(len(group.documents) for group in one)
    np.testing.assert_allclose(*scores, atol=1e-5)
    numbers = [(tmp_path / runs / "tiny" / "distil" / "metrics.jsonl").read_text().splitlines() for runs in "12"]
    losses = [[row["loss"] for row in map(json.loads, lines) if "loss" in row] for lines in numbers]
    assert len(losses[0]) == 5
    np.testing.assert_allclose(*losses, rtol=1e-4)


@pytest.mark.slow
def test_a_second_round_mines_with_the_first_rounds_model(command, recipe_file, tmp_path):
    runs = tmp_path / "runs"
    result = command(recipe_file, "mine.rounds=2", "mine.groups=draws", "--runs", runs, "--force")
    assert result.returncode == 0, result.stdout + result.stderr
    first, second = (read_groups(runs / "tiny" / stage) for stage in ("mine", "mine-2"))
    assert all(group.teacher is None for group in first)
    assert all(group.teacher for group in second)
    assert [group.negatives for group in first] != [group.negatives for group in second]
    assert (runs / "tiny" / "train-2" / "best" / "model.safetensors").is_file()
    again = command(recipe_file, "mine.rounds=2", "mine.groups=draws", "--runs", runs, "--force")
    assert again.stdout.count("(up to date)") == 8


def test_reviewed_labels_come_back_as_judgements(recipe_file, tmp_path, capsys):
    runs = tmp_path / "runs"
    words = ["mine.max_share_of_positive=0.5"]
    run(load_recipe(recipe_file, words), runs, until="mine")
    suspects = (runs / "tiny" / "mine" / "suspected_false_negatives.jsonl").read_text().splitlines()
    assert suspects
    marked = [json.loads(line) | {"relevant": True} for line in suspects[:3]]
    path = tmp_path / "marked.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in marked))
    run(load_recipe(recipe_file, [*words, f"data.judgements={path}"]), runs, until="mine")
    assert "3 judgements added" in capsys.readouterr().out
    left = (runs / "tiny" / "mine" / "suspected_false_negatives.jsonl").read_text()
    pairs = [(line["query_id"], line["document_id"]) for line in map(json.loads, left.splitlines())]
    assert not {(line["query_id"], line["document_id"]) for line in marked} & set(pairs)
