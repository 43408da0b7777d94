"""Ready rerankers on the data of a recipe: the same figures as evaluation, and a fault costs one row."""

import json
import shutil

import pytest

from trainer.commands.compare import compare
from trainer.data import EarlierSplits
from trainer.errors import RecipeError, RunError
from trainer.evaluation import Results
from trainer.evaluation import statistics as numbers
from trainer.evaluation.two_stage import mean_score
from trainer.model import Reranker
from trainer.pipeline import open_run
from trainer.recipe import load_recipe


@pytest.fixture(autouse=True)
def _fewer_resamples(monkeypatch):
    monkeypatch.setattr(numbers, "RESAMPLES", 199)


def test_figures_are_those_of_evaluation_and_a_fault_costs_its_own_row(recipe_file, tmp_path, tiny, capsys):
    recipe = load_recipe(recipe_file)
    rows = compare(recipe, tmp_path / "runs", [str(tiny["reranker"]), str(tiny["bert"]), "no/such folder"])
    assert [row.name for row in rows] == [
        "first stage",
        *map(str, (tiny["reranker"], tiny["bert"])),
        "no/such folder",
        "ceiling",
    ]
    first, ready, encoder, missing, ceiling = rows
    assert "no such folder" in missing.fault
    assert encoder.fault  # an encoder without a head has to be trained first
    opened = open_run(recipe, tmp_path / "runs")
    model, collection = Reranker.load(tiny["reranker"], max_length=32), opened.collection
    reranked = opened.reranked("test")
    scores = reranked.scored(
        lambda pairs: [
            float(
                model.score([(collection.query_texts([query])[0], text) for text in collection.passages([document])])[0]
            )
            for query, document in pairs
        ]
    )
    expected = mean_score(collection, "test", opened.candidates("test"), "nDCG@10", scores)
    assert ready.test["nDCG@10"].mean == pytest.approx(expected)
    assert ready.difference.mean == pytest.approx(expected - first.test["nDCG@10"].mean)
    assert ceiling.test["nDCG@10"].mean >= max(expected, first.test["nDCG@10"].mean)
    assert ready.pairs_per_second > 0
    kept = json.loads((tmp_path / "runs" / "tiny" / "compare.json").read_text())
    assert [row["name"] for row in kept] == [row.name for row in rows]
    assert not (tmp_path / "runs" / "tiny" / "train").exists()
    shown = capsys.readouterr().out
    assert "pairs/s" in shown
    assert f"{ready.test['nDCG@10'].mean:.3f}" in shown
    with pytest.raises(RunError, match="no such folder"):
        compare(recipe, tmp_path / "runs", ["no/such folder"])


def test_a_run_folder_is_its_exported_model_alone_and_fused(exported, tmp_path, capsys):
    recipe, runs = exported
    rows = compare(load_recipe(recipe), runs, [str(runs / "exported")])
    results = Results.load(runs / "exported" / "evaluate")
    name = str(runs / "exported")
    assert [row.name for row in rows] == ["first stage", name, f"{name}, fused", "ceiling"]
    _, alone, fused, _ = rows
    shipped = next(system for system in ("tuned", "fitted") if system in results.systems)
    assert alone.test["nDCG@10"].mean == pytest.approx(results.systems[shipped]["nDCG@10"].mean)
    assert fused.test["nDCG@10"].mean == pytest.approx(results.systems["fused"]["nDCG@10"].mean)
    assert fused.parameters == alone.parameters > 0
    assert 0 < alone.p50_ms <= alone.p95_ms
    assert alone.wins + alone.losses <= len(open_run(load_recipe(recipe), runs).collection.answerable("test"))
    assert alone.p >= 0.0002  # corrected for two systems
    shown = capsys.readouterr().out
    assert "exported, fused" in shown
    assert f"{alone.wins}/{alone.losses}" in shown
    assert "too good" not in shown


def test_a_model_that_knows_the_test_queries_is_told(exported, tmp_path, capsys):
    recipe, runs = exported
    folder = tmp_path / "model"
    shutil.copytree(runs / "exported" / "export" / "model", folder)
    texts = open_run(load_recipe(recipe), runs).collection
    tested = texts.query_texts(texts.answerable("test"))
    EarlierSplits("model", {}).updated({"train": tested[:3], "dev": [], "test": []}).save(folder)
    compare(load_recipe(recipe), runs, [str(folder)])
    assert f"was trained on 3 of these {len(tested)} test queries" in capsys.readouterr().out


def test_a_model_is_named_once(recipe_file, tmp_path):
    with pytest.raises(RecipeError, match="named twice: a"):
        compare(load_recipe(recipe_file), tmp_path / "runs", ["a", "a", "b"])
    assert not (tmp_path / "runs").exists()
