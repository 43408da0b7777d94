"""Checks of a model's files: each problem is one sentence, before anything is loaded."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from trainer.errors import ModelError
from trainer.model import Reranker
from trainer.model_files.checks import faults_of_bi_encoder, faults_of_cross_encoder
from trainer.model_files.tokenizer_file import unknown_share
from trainer.retriever import BiEncoder

WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(tiny: dict[str, Path], tmp_path: Path) -> Path:
    """A model folder that a test may change."""
    return Path(shutil.copytree(tiny["bert"], tmp_path / "model"))


def rename(weights: dict[str, np.ndarray], change: Callable[[str], str]) -> dict[str, np.ndarray]:
    return {change(name): tensor for name, tensor in weights.items()}


def rewrite(folder: Path, change: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]) -> None:
    save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS, metadata={"format": "pt"})


def set_config(folder: Path, name: str = "config.json", **values: object) -> None:
    path = folder / name
    config = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(config | values))


def cut(path: Path, kept: float = 0.5) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])


def replace_by_link(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.with_name("nowhere"))


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def shard(folder: Path, missing: bool) -> None:
    """Split the weights into two files with an index, and take the second away."""
    weights = load_file(folder / WEIGHTS)
    names = sorted(weights)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: weights[name] for name in part}, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, part in parts.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / WEIGHTS).unlink()
    if missing:
        (folder / "model-00002-of-00002.safetensors").unlink()


def without_tokenizer(folder: Path) -> None:
    for path in [*folder.glob("tokenizer*"), *folder.glob("special*")]:
        path.unlink()


def larger_tokenizer(folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    rows = len(tokenizer["model"]["vocab"])
    token = {"id": rows, "content": "[NEW]", "single_word": False, "lstrip": False, "rstrip": False}
    tokenizer["added_tokens"].append(token | {"normalized": False, "special": True})
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


EITHER = [  # whatever the model is used as
    ("list.json", lambda f: (f / "config.json").write_text("[1]"), "config.json is a list and no JSON object"),
    ("deep.json", lambda f: (f / "config.json").write_text("[" * 9000), "config.json is not JSON"),
    ("binary.json", lambda f: (f / "config.json").write_bytes(b"\xff\xfe{}"), "config.json is not JSON"),
    ("half", lambda f: cut(f / WEIGHTS), r"model\.safetensors \(\d+ bytes\) is truncated or not safetensors"),
    ("one byte", lambda f: cut(f / WEIGHTS, 0.99999), "is truncated or not safetensors"),
    ("header", lambda f: cut(f / WEIGHTS, 0.001), "is truncated or not safetensors"),
    ("empty", lambda f: (f / WEIGHTS).write_bytes(b""), r"\(0 bytes\) is truncated or not safetensors"),
    ("zeros", lambda f: (f / WEIGHTS).write_bytes(bytes(5000)), "is truncated or not safetensors"),
    (
        "pointer",
        lambda f: (f / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"),
        "Git LFS pointer and not the weights; run `git lfs pull`",
    ),
    ("link", lambda f: replace_by_link(f / WEIGHTS), "model.safetensors cannot be read .No such file"),
    ("folder", lambda f: replace_by_folder(f / WEIGHTS), "model.safetensors cannot be read .Is a directory"),
    ("shard", lambda f: shard(f, missing=True), "1 of its 2 weight files are missing .model-00002-of-00002"),
    (
        "index",
        lambda f: (shard(f, False), (f / "model.safetensors.index.json").write_text("[]")),
        "model.safetensors.index.json names no files",
    ),
    (
        "no index",
        lambda f: (shard(f, False), (f / "model.safetensors.index.json").unlink()),
        "holds no model.safetensors and no model.safetensors.index.json",
    ),
    (
        "adapter",
        lambda f: (f / WEIGHTS).rename(f / "adapter_model.safetensors"),
        "found: adapter_model.safetensors.; merge the adapter into its base",
    ),
    ("no tensor", lambda f: save_file({}, f / WEIGHTS), "hold no tensor"),
    ("wrapper", lambda f: rewrite(f, lambda w: rename(w, "module.{}".format)), "inside a wrapper"),
    (
        "layer",
        lambda f: rewrite(f, lambda w: {name: w[name] for name in w if ".layer.1." not in name}),
        r"says 3 layers \(0 to 2\), but the weights hold the layers 0, 2;",
    ),
    ("layers", lambda f: set_config(f, num_hidden_layers=2), "says 2 layers .* the weights hold the layers 0 to 2;"),
    ("width", lambda f: set_config(f, hidden_size=64), "says a width of 64, but the weights are 32 wide"),
    ("rows", lambda f: set_config(f, vocab_size=9), "says a vocabulary of 9, but the weights hold"),
    ("no tokenizer", without_tokenizer, "holds no tokenizer .tokenizer.json"),
    ("tokenizer", lambda f: cut(f / "tokenizer.json"), "tokenizer.json cannot be read"),
    ("tokenizer link", lambda f: replace_by_link(f / "tokenizer.json"), "tokenizer.json cannot be read .No such file"),
    ("tokenizer folder", lambda f: replace_by_folder(f / "tokenizer.json"), "tokenizer.json cannot be read .Is a dir"),
    ("settings folder", lambda f: replace_by_folder(f / "tokenizer_config.json"), "_config.json cannot be read .Is a"),
    ("settings link", lambda f: replace_by_link(f / "tokenizer_config.json"), "_config.json cannot be read .No such"),
    ("config link", lambda f: replace_by_link(f / "config.json"), "config.json cannot be read .No such file"),
    ("modules folder", lambda f: (f / "modules.json").mkdir(), "modules.json cannot be read .Is a directory"),
    ("settings", lambda f: cut(f / "tokenizer_config.json"), "tokenizer_config.json is not JSON"),
    ("settings list", lambda f: (f / "tokenizer_config.json").write_text("[]"), "tokenizer_config.json is no JSON"),
    ("larger", larger_tokenizer, r"its tokenizer gives ids up to (\d+), but its embedding has \1 rows"),
]


@pytest.mark.parametrize(
    ("change", "fault"), [(change, fault) for _, change, fault in EITHER], ids=[x[0] for x in EITHER]
)
def test_a_folder_that_cannot_be_loaded_is_one_sentence_in_every_use(folder, change, fault):
    change(folder)
    for faults in (faults_of_cross_encoder(folder, "auto", False), faults_of_bi_encoder(folder, False)):
        with pytest.raises(ModelError, match=f"(?s)^model {folder}: .*{fault}"):
            raise ModelError(faults)
        assert not any("\n" in line for line in faults)
    with pytest.raises(ModelError, match=fault):
        Reranker.load(folder)
    with pytest.raises(ModelError, match=fault):
        BiEncoder(folder).load("cpu")


def test_problems_of_configuration_weights_and_tokenizer_are_reported_together(folder):
    set_config(folder, model_type="gpt2", architectures=["GPT2LMHeadModel"])
    cut(folder / WEIGHTS)
    without_tokenizer(folder)
    decoder, weights, tokenizer = faults_of_cross_encoder(folder, "auto", False)
    assert "is a decoder (GPT2LMHeadModel)" in decoder
    assert "is truncated or not safetensors" in weights
    assert "holds no tokenizer" in tokenizer


def test_a_complete_set_of_shards_is_one_model(folder, tiny):
    shard(folder, missing=False)
    assert faults_of_cross_encoder(folder, "auto", False) == []
    loaded = [
        Reranker.load(path, max_length=32).score([("queue", text) for text in ["disk", "lag grows"]])
        for path in (folder, tiny["bert"])
    ]
    np.testing.assert_allclose(*loaded, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["bert", "roberta", "modernbert", "reranker"])
def test_complete_folders_have_no_problems(tiny, name):
    assert faults_of_cross_encoder(tiny[name], "auto", False, 32) == []
    assert faults_of_bi_encoder(tiny[name], False) == []


def test_a_saved_interaction_model_has_no_problems(exported):
    model = exported[1] / "exported" / "export" / "model"
    assert faults_of_cross_encoder(model, "auto", False) == []
    assert faults_of_cross_encoder(model, "trained", False) == []


HEADS = [
    (
        {"architectures": ["BertForSequenceClassification"], "id2label": {"0": "NEGATIVE", "1": "POSITIVE"}},
        "auto",
        "classifier with 2 labels .NEGATIVE, POSITIVE., of which none is known to mean relevant",
    ),
    ({"architectures": ["XForSequenceClassification"], "num_labels": 3}, "classifier", "classifier with 3 labels"),
    (
        {"model_type": "mpnet"},
        "auto",
        "is a mpnet model, which cannot have the interaction head; use reranker.head: clas",
    ),
    ({"model_type": "brand-new"}, "interaction", "cannot have the interaction head; use reranker.head: classifier"),
    ({"model_type": "fnet"}, "classifier", "cannot be a reranker here: it has no attention mask"),
    ({"model_type": "xlnet"}, "auto", "cannot be a reranker here: it reads the last token"),
    ({"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}, "interaction", "is a decoder, which cannot have"),
    ({"model_type": "qwen3", "architectures": ["Qwen3Model"]}, "auto", "is a decoder .Qwen3Model"),
    ({"architectures": ["BertLMHeadModel"]}, "auto", "is a decoder .BertLMHeadModel"),
    ({"is_decoder": True, "architectures": None}, "classifier", "is a decoder .bert"),
    ({"model_type": "t5", "architectures": ["T5EncoderModel"]}, "classifier", "half of an encoder-decoder"),
    ({"model_type": 7}, "auto", "names no model_type"),
    ({"model_type": None}, "classifier", "names no model_type"),
    ({}, "trained", "is an encoder without a trained head"),
    ({"auto_map": {"AutoModel": "own.Own"}, "model_type": "own"}, "classifier", "set reranker.trust_remote_code: true"),
    ({"auto_map": {"AutoModel": "own.Own"}, "model_type": "own"}, "auto", "use reranker.head: classifier"),
]


@pytest.mark.parametrize(("config", "head", "fault"), HEADS)
def test_unsupported_models_are_reported_with_the_remedy(folder, config, head, fault):
    set_config(folder, **config)
    faults = faults_of_cross_encoder(folder, head, False, trust="reranker.trust_remote_code")
    with pytest.raises(ModelError, match=fault):
        raise ModelError(faults)


def test_trusted_code_is_allowed_with_a_classifier(folder):
    set_config(folder, auto_map={"AutoModel": "own.Own"}, model_type="own")
    assert faults_of_cross_encoder(folder, "classifier", True) == []
    (fault,) = faults_of_bi_encoder(folder, False, trust="retriever.trust_remote_code")
    assert fault.endswith("read it, then set retriever.trust_remote_code: true")
    assert faults_of_bi_encoder(folder, True) == []


def test_a_ready_reranker_keeps_its_classifier(tiny):
    (fault,) = faults_of_cross_encoder(tiny["reranker"], "interaction", False)
    assert "which the interaction head would discard" in fault


@pytest.mark.parametrize(("name", "longest"), [("bert", 66), ("roberta", 65), ("modernbert", 66)])
def test_a_length_beyond_the_positions_is_reported_beforehand(tiny, name, longest):
    assert faults_of_cross_encoder(tiny[name], "auto", False, longest) == []
    (fault,) = faults_of_cross_encoder(tiny[name], "auto", False, longest + 1)
    assert f"reads {longest} tokens at most, but reranker.max_length is {longest + 1}" in fault


def modules(folder: Path, *kinds: str) -> None:
    """Write modules.json as sentence-transformers does; `kinds` are the classes after the transformer."""
    names = ["sentence_transformers.models.Transformer", *kinds]
    paths = ["", *(f"{place}_{name.rpartition('.')[2]}" for place, name in enumerate(kinds, 1))]
    rows = [{"idx": idx, "name": str(idx), "path": paths[idx], "type": name} for idx, name in enumerate(names)]
    (folder / "modules.json").write_text(json.dumps(rows))
    for path in paths[1:]:
        (folder / path).mkdir()


def test_a_bi_encoder_is_a_base_and_its_pooling_no_head(folder):
    modules(folder, "sentence_transformers.models.Pooling", "sentence_transformers.models.Normalize")
    assert faults_of_cross_encoder(folder, "auto", False) == []


@pytest.mark.parametrize(
    ("kinds", "files", "head"),
    [
        (["sentence_transformers.models.Pooling", "own.Score"], {}, "own.Score"),
        (["sentence_transformers.models.LayerNorm"], {}, "LayerNorm"),
        (["sentence_transformers.models.Dense"], {"1_Dense/config.json": {"out_features": 1}}, "Dense"),
        (
            ["sentence_transformers.models.Pooling"],
            {"config_sentence_transformers.json": {"model_type": "CrossEncoder"}},
            "Pooling",
        ),
    ],
)
def test_a_head_in_separate_modules_is_not_dropped_silently(folder, kinds, files, head):
    modules(folder, *kinds)
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    (fault,) = faults_of_cross_encoder(folder, "auto", False)
    assert "has a head in separate modules (modules.json: " in fault
    assert head in fault


def test_a_bi_encoder_with_a_class_of_its_own_needs_the_key(folder):
    modules(folder, "own.Pooling")
    (fault,) = faults_of_bi_encoder(folder, False, trust="retriever.trust_remote_code")
    assert "modules.json: own.Pooling" in fault
    assert "retriever.trust_remote_code: true" in fault


def test_a_dense_module_with_pickled_weights_is_refused(folder):
    modules(folder, "sentence_transformers.models.Dense")
    (folder / "1_Dense" / "pytorch_model.bin").write_bytes(b"pickle")
    (fault,) = faults_of_bi_encoder(folder, False)
    assert "1_Dense holds no model.safetensors" in fault


@pytest.mark.parametrize("content", ["{", "[1]", '{"type": "x"}', '[{"type": "x"}]'])
def test_unreadable_modules_are_an_error(folder, content):
    (folder / "modules.json").write_text(content)
    for faults in (faults_of_cross_encoder(folder, "auto", False), faults_of_bi_encoder(folder, False)):
        assert any("modules.json is no" in fault for fault in faults)


@pytest.mark.parametrize(
    ("texts", "share"), [(["disk queue"], 0), (["disk unheard", "of disk"], 0.25), (["unheard"], 1), ([""], 0), ([], 0)]
)
def test_the_share_of_unknown_tokens(tiny, texts, share):
    assert unknown_share(tiny["bert"], texts) == share  # a word is a token: of is in the vocabulary, unheard is not
