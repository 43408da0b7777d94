"""The whole path on tiny models, as a user runs it: what is done, skipped and refused."""

import json


def test_a_second_run_skips_everything_and_a_change_redoes_from_there(command, recipe_file, tmp_path):
    runs = tmp_path / "runs"
    first = command(recipe_file, "--runs", runs, "--force")
    assert first.returncode == 0, first.stdout + first.stderr
    assert "(stands)" not in first.stdout
    for name in ("data", "retrieve", "mine", "train", "evaluate", "export"):
        notes = json.loads((runs / "tiny" / name / "done.json").read_text())
        assert notes["seconds"] >= 0
        assert notes["versions"]["torch"]

    second = command(recipe_file, "--runs", runs, "--force")
    assert second.stdout.count("(stands)") == 6
    assert "ceiling" in second.stdout  # the table is shown again

    third = command(recipe_file, "mine.negatives_per_positive=3", "--runs", runs, "--force")
    assert third.returncode == 0, third.stdout + third.stderr
    assert third.stdout.count("(stands)") == 2  # data and retrieve


def test_a_changed_document_is_noticed(command, recipe_file, beir, tmp_path):
    words = (recipe_file, "retriever.depth=10", "--runs", tmp_path / "runs", "--force")
    assert command(*words).returncode == 0
    corpus = beir / "corpus.jsonl"
    corpus.write_text(corpus.read_text().replace("inodes", "blocks", 1))
    again = command(*words)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "(stands)" not in again.stdout


def test_a_ready_reranker_stands_in_the_table_as_base(command, recipe_file, tiny, tmp_path):
    words = (f"reranker.model={tiny['reranker']}", "--runs", tmp_path / "runs", "--force")
    result = command(recipe_file, *words)
    assert result.returncode == 0, result.stdout + result.stderr
    results = json.loads((tmp_path / "runs" / "tiny" / "evaluate" / "results.json").read_text())
    assert list(results["systems"]) == ["first_stage", "base", "tuned", "ceiling"]
    config = json.loads((tmp_path / "runs" / "tiny" / "export" / "model" / "config.json").read_text())
    assert config["architectures"] == ["BertForSequenceClassification"]


def test_a_model_that_is_no_better_stays_here(command, recipe_file, tmp_path):
    result = command(recipe_file, "--runs", tmp_path / "runs")  # a random model under a good first stage
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert "no better than the first stage" in result.stderr
    assert not (tmp_path / "runs" / "tiny" / "export").exists()
