"""Check: what can be known of models and uploads beforehand is told before anything is computed."""

import json
import shutil
from pathlib import Path

import pytest

from trainer.check import check
from trainer.errors import ModelError, PushError, TrainerError
from trainer.pipeline import run
from trainer.recipe import load_recipe


@pytest.fixture
def broken(tiny: dict[str, Path], tmp_path: Path) -> Path:
    """A reranker whose weights were cut."""
    folder = Path(shutil.copytree(tiny["reranker"], tmp_path / "broken"))
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    return folder


def test_the_errors_of_all_models_are_reported_at_once_with_their_keys(recipe_file, broken):
    references = ["retriever.model", "mine.teacher", "reranker.model", "distil.model"]
    recipe = load_recipe(recipe_file, ["retriever.kind=dense", *(f"{key}={broken}" for key in references)])
    with pytest.raises(ModelError) as error:
        check(recipe)
    assert [fault.partition(": ")[0] for fault in error.value.faults] == references
    assert all("model.safetensors" in fault and "is truncated" in fault for fault in error.value.faults)


def test_a_run_ends_before_its_folder_is_made(recipe_file, broken, tmp_path):
    with pytest.raises(ModelError, match="is truncated"):
        run(load_recipe(recipe_file, [f"mine.teacher={broken}"]), tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_a_hub_model_that_is_not_in_the_cache_is_reported_while_offline(recipe_file):
    """HF_HUB_OFFLINE is set for the whole suite."""
    with pytest.raises(ModelError, match="^reranker.model: model 'me/never': no folder here, not in the local cache"):
        check(load_recipe(recipe_file, ["reranker.model=me/never"]))


def test_a_teacher_without_a_head_is_refused(recipe_file, tiny):
    with pytest.raises(ModelError, match="^mine.teacher: .* is an encoder without a trained head"):
        check(load_recipe(recipe_file, [f"mine.teacher={tiny['bert']}"]))


def test_errors_of_models_and_of_data_are_reported_together(recipe_file, broken, beir):
    (beir / "queries.jsonl").unlink()
    with pytest.raises(TrainerError) as error:
        check(load_recipe(recipe_file, [f"reranker.model={broken}"]))
    assert any("is truncated" in fault for fault in error.value.faults)
    assert any("queries.jsonl" in fault for fault in error.value.faults)


def vocabulary(folder: Path, known: set[str]) -> None:
    """Leave only these words in a tokenizer; its special tokens stay."""
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocab = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = {word: row for word, row in vocab.items() if word[0] == "[" or word in known}
    path.write_text(json.dumps(tokenizer))


@pytest.fixture
def foreign(tiny: dict[str, Path], tmp_path: Path) -> Path:
    """A model of another language: it knows none of the collection's words."""
    folder = Path(shutil.copytree(tiny["bert"], tmp_path / "foreign"))
    vocabulary(folder, set())
    return folder


def test_a_tokenizer_that_knows_no_token_of_the_collection_is_refused(recipe_file, foreign):
    with pytest.raises(ModelError, match="^reranker.model: .* does not know 100% of the tokens .* language$"):
        check(load_recipe(recipe_file, [f"reranker.model={foreign}"]))


def test_a_bi_encoders_tokenizer_is_checked_too(recipe_file, foreign):
    with pytest.raises(ModelError, match="^retriever.model: .* does not know 100%"):
        check(load_recipe(recipe_file, ["retriever.kind=dense", f"retriever.model={foreign}"]))


def test_a_tokenizer_that_knows_half_of_the_tokens_is_a_warning(recipe_file, foreign, words, tiny, capsys):
    (foreign / "tokenizer.json").write_bytes((tiny["bert"] / "tokenizer.json").read_bytes())
    vocabulary(foreign, set(words[::2]))
    check(load_recipe(recipe_file, [f"reranker.model={foreign}"]))
    assert (
        "of the tokens in a sample of the collection; a model for the collection's language" in capsys.readouterr().out
    )


def test_a_tokenizer_that_knows_the_collection_is_not_mentioned(recipe_file, capsys):
    check(load_recipe(recipe_file))
    assert "does not know" not in capsys.readouterr().out


@pytest.fixture
def no_token(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no" / "token"))


@pytest.mark.usefixtures("no_token")
def test_a_push_without_a_token_is_reported_before_the_run(recipe_file, tmp_path):
    recipe = load_recipe(recipe_file, ["push.repository=me/model"])
    for begin in (check, lambda recipe: run(recipe, tmp_path / "runs")):
        with pytest.raises(PushError, match="no Hugging Face token; run `hf auth login`"):
            begin(recipe)
    assert not (tmp_path / "runs").exists()


@pytest.mark.usefixtures("no_token")
def test_a_step_that_pushes_nothing_needs_no_token(recipe_file, tmp_path):
    run(load_recipe(recipe_file, ["push.repository=me/model"]), tmp_path / "runs", until="retrieve")


def test_a_push_with_a_token_but_offline_is_reported_before_the_run(recipe_file, monkeypatch):
    """HF_HUB_OFFLINE is set for the whole suite."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with pytest.raises(PushError, match="HF_HUB_OFFLINE is set, so nothing can be sent") as error:
        check(load_recipe(recipe_file, ["push.repository=me/model"]))
    assert "hf_secret" not in str(error.value)
