"""`train.epochs: 0`: the fitted head, or a base that ranks already, is evaluated and exported without any step."""

import json

import pytest
import torch
from safetensors.torch import load_file

from trainer.check import check
from trainer.errors import RecipeError
from trainer.pipeline import run
from trainer.recipe import load_recipe

PASSED_WEIGHTS = "model.safetensors"


def results_of(folder):
    return json.loads((folder / "evaluate" / "results.json").read_text())


@pytest.fixture(scope="module")
def fitted(tmp_path_factory, shared_beir, tiny):
    """The run folder of an encoder with a fitted head, and what the run printed."""
    root = tmp_path_factory.mktemp("fitted")
    recipe = root / "fitted.yaml"
    recipe.write_text(
        f"{{name: fitted, data: {{path: {shared_beir}}}, retriever: {{kind: bm25, depth: 12}}, "
        f"reranker: {{model: {tiny['bert']}, max_length: 32}}, train: {{epochs: 0, precision: fp32}}, "
        "export: {formats: []}}\n"
    )
    run(load_recipe(recipe), root / "runs", force=True)
    return root / "runs" / "fitted"


def test_the_fitted_head_is_evaluated_and_nothing_else(fitted):
    results = results_of(fitted)
    assert list(results["systems"])[:3] == ["first_stage", "fitted", "fused"]
    assert "tuned" not in results["systems"]
    assert (results["shipped"], results["trained"]) == ("fitted", False)


def test_no_step_was_done_and_no_interpolation(fitted):
    notes = json.loads((fitted / "train" / "done.json").read_text())
    assert (notes["best_step"], notes["trained_share"]) == (0, 0.0)
    assert [share for share, _ in notes["interpolation"]] == [0.0]
    assert json.loads((fitted / "train" / "between.json").read_text()) == []
    steps = [json.loads(line)["step"] for line in (fitted / "train" / "metrics.jsonl").read_text().splitlines()]
    assert set(steps) == {0}
    assert notes["said"].startswith("not trained (train.epochs: 0); dev nDCG@10")


def test_the_exported_weights_are_those_before_training(fitted):
    start, exported = (load_file(fitted / folder / PASSED_WEIGHTS) for folder in ("train/start", "export/model"))
    assert start.keys() == exported.keys()
    assert all(torch.equal(start[name], exported[name]) for name in start)


def test_verdict_card_and_report_tell_that_training_did_not_run(fitted):
    notes = json.loads((fitted / "evaluate" / "done.json").read_text())
    assert notes["judged"].endswith("; training did not run")
    card = (fitted / "export" / "model" / "README.md").read_text()
    assert "It is not fine-tuned: these are its weights, with a head fitted to the candidates" in card
    assert "no checkpoint of the training" not in card
    assert "Training did not run" in (fitted / "report.md").read_text()
    assert "Training did not help" not in (fitted / "report.md").read_text()


def test_a_base_that_ranks_already_is_compared_with_the_first_stage_only(recipe_file, tiny, tmp_path, capsys):
    words = [f"reranker.model={tiny['reranker']}", "train.epochs=0", "reranker.lexical_signals=false"]
    recipe = load_recipe(recipe_file, words)
    result = run(recipe, tmp_path / "runs", force=True)
    results = results_of(tmp_path / "runs" / "tiny")
    assert (results["shipped"], results["trained"]) == ("base", False)
    assert list(results["systems"]) == ["first_stage", "base", "fused", "ceiling"]
    assert {finding["against"] for finding in results["ways"].values()} == {"first_stage"}
    printed = capsys.readouterr().out
    assert "training did not run (train.epochs: 0)" in printed
    assert "training did not help" not in printed
    exported = load_file(result.folder / "export" / "model" / PASSED_WEIGHTS)
    base = load_file(tiny["reranker"] / PASSED_WEIGHTS)
    assert all(torch.equal(base[name], exported[name]) for name in exported)


def test_a_new_classifier_without_training_is_refused(recipe_file):
    with pytest.raises(RecipeError, match="^train.epochs: 0 trains nothing, and a new classifier on .* random weights"):
        check(load_recipe(recipe_file, ["train.epochs=0", "reranker.head=classifier"]))


def test_a_classifier_that_ranks_already_is_accepted(recipe_file, tiny):
    check(
        load_recipe(recipe_file, ["train.epochs=0", "reranker.head=classifier", f"reranker.model={tiny['reranker']}"])
    )


def test_a_second_round_of_mining_without_training_is_refused(recipe_file):
    with pytest.raises(RecipeError, match="train.epochs: 0 trains no model that could mine again"):
        load_recipe(recipe_file, ["train.epochs=0", "mine.rounds=2"])


@pytest.mark.parametrize("epochs", [-1, 0.5])
def test_other_numbers_of_epochs_are_refused(recipe_file, epochs):
    with pytest.raises(RecipeError, match="train.epochs"):
        load_recipe(recipe_file, [f"train.epochs={epochs}"])
