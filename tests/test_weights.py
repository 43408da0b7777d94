"""Loaded weights all come from the files; only the tensors of a new head may be missing."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertModel,
)

from trainer.errors import ModelError
from trainer.model import Reranker
from trainer.model_files import weights
from trainer.retriever import BiEncoder

WORD = "embeddings.word_embeddings.weight"


@pytest.fixture
def folder(tiny, tmp_path) -> Path:
    """An encoder that a test may change."""
    return Path(shutil.copytree(tiny["bert"], tmp_path / "model"))


@pytest.fixture
def ready(tiny, tmp_path) -> Path:
    """A reranker that a test may change."""
    return Path(shutil.copytree(tiny["reranker"], tmp_path / "ready"))


def rewrite(folder: Path, change) -> None:
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def without(*names: str):
    return lambda held: {name: tensor for name, tensor in held.items() if name not in names}


def loads(folder: Path):
    """Every way in which an encoder is loaded."""
    return [
        lambda: Reranker.load(folder, head="interaction"),
        lambda: Reranker.load(folder, head="classifier"),
        lambda: BiEncoder(folder).load("cpu"),
    ]


QUERY = "encoder.layer.1.attention.self.query.weight"


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (
            lambda held: {f"foo.{name}": held[name] for name in held},
            r"of its \d+ tensors are not in its files.*but foo\.",
        ),
        (without(QUERY), f"1 of its .* tensors are not in its files, such as (bert.)?{QUERY}"),
        (without(WORD), f"not in its files, such as (bert.)?{WORD}"),
        (
            lambda held: held | {"encoder.layer.1.attention.self.more.weight": held[QUERY]},
            "1 tensors that do not belong to the model in config.json",
        ),
        (
            lambda held: held | {QUERY: held[QUERY][:16]},
            rf"{QUERY} has the shape \(16, 32\) in its files, but \(32, 32\) by config",
        ),
        (lambda held: held | {QUERY: held[QUERY] * np.nan}, f"{QUERY} holds values that are not finite"),
        (lambda held: held | {QUERY: held[QUERY] + np.inf}, f"{QUERY} holds values that are not finite"),
        (lambda held: held | {WORD: held[WORD] * 0}, "its token embedding is all zero"),
    ],
    ids=["prefix", "missing", "no embedding", "left over", "mismatched", "nan", "infinite", "zero"],
)
def test_weights_that_do_not_fit_are_an_error_in_every_use(folder, change, fault, capfd):
    rewrite(folder, change)
    for load in loads(folder):
        with pytest.raises(ModelError, match=f"^model {folder}: .*{fault}") as error:
            load()
        assert len(error.value.faults) == 1
        assert "fetch" in error.value.faults[0]
    assert capfd.readouterr().err == ""  # transformers' own report of it is not printed


def test_weights_for_code_of_their_own_under_a_known_model_type_name_the_key(ready):
    """As jina-reranker-v2 has them: model_type xlm-roberta, and other names of the weights."""
    rewrite(ready, lambda held: {name.replace("attention.self", "mixer"): held[name] for name in held})
    config = json.loads((ready / "config.json").read_text())
    config["auto_map"] = {"AutoModelForSequenceClassification": "modeling_own.Own"}
    (ready / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        ModelError, match="mixer.*are for Python code of its own .*set trust_remote_code: true"
    ) as error:
        Reranker.load(ready)
    assert len(error.value.faults) == 1


def test_a_trained_reranker_keeps_its_complete_head(ready):
    rewrite(ready, without("classifier.bias"))
    with pytest.raises(ModelError, match="1 of its .* tensors are not in its files, such as classifier.bias"):
        Reranker.load(ready)


def test_a_trained_reranker_keeps_its_pooler(ready):
    rewrite(ready, without("bert.pooler.dense.weight", "bert.pooler.dense.bias"))
    with pytest.raises(ModelError, match=r"2 of its .* such as bert\.pooler\.dense\.bias"):
        Reranker.load(ready)


def test_the_head_of_another_size_is_no_reranker(ready):
    rewrite(ready, lambda held: held | {"classifier.weight": np.zeros((2, 32), np.float32)})
    with pytest.raises(
        ModelError, match=r"classifier\.weight has the shape \(2, 32\) in its files, but \(1, 32\) by config.json"
    ):
        Reranker.load(ready)


@pytest.mark.parametrize(
    ("make", "head"),
    [
        (BertForMaskedLM, "interaction"),
        (BertForMaskedLM, "classifier"),
        (BertForQuestionAnswering, "interaction"),
        (BertForQuestionAnswering, "classifier"),
    ],
)
def test_heads_of_another_task_are_left_out_and_the_encoder_is_kept(tiny, tmp_path, make, head, capsys):
    encoder = BertModel.from_pretrained(tiny["bert"])
    model = make(encoder.config)
    model.bert.load_state_dict(encoder.state_dict(), strict=False)
    model.save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(tiny["bert"]).save_pretrained(tmp_path / "base")
    reranker = Reranker.load(tmp_path / "base", head=head, max_length=32)
    torch.testing.assert_close(
        reranker.model.base_model.get_input_embeddings().weight, encoder.get_input_embeddings().weight
    )
    name = {"interaction": "interaction head", "classifier": "classifier"}[head]
    assert f"{tmp_path / 'base'}: the {name} is new;" in capsys.readouterr().out


def test_no_weights_are_reported_as_new_if_none_are(tiny, capfd):
    Reranker.load(tiny["reranker"], max_length=32)
    assert capfd.readouterr() == ("", "")


def test_buffers_in_old_files_are_ignored(folder):
    rewrite(folder, lambda held: held | {"embeddings.position_ids": np.arange(66)[None]})
    for load in loads(folder):
        load()


def test_weights_in_half_precision_are_read_as_float32(folder):
    rewrite(folder, lambda held: {name: tensor.astype(np.float16) for name, tensor in held.items()})
    model = weights.load(AutoModel, folder)
    assert {tensor.dtype for tensor in model.parameters()} == {torch.float32}


def test_a_bi_encoder_whose_sizes_differ_is_an_error(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 64}))
    with pytest.raises(
        ModelError, match=r"intermediate\.dense\.bias has the shape \(48,\) in its files, but \(64,\) by config.json"
    ):
        BiEncoder(folder).load("cpu")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("config.json", {"hidden_act": "no_such_function"}),
        ("config.json", {"num_attention_heads": 5}),
        ("config.json", {"num_attention_heads": "two"}),
        ("config.json", {"max_position_embeddings": -1}),
        ("config.json", {"dtype": "float99"}),
        ("tokenizer_config.json", {"tokenizer_class": "NoSuchTokenizer", "auto_map": 7}),
        ("tokenizer_config.json", {"model_max_length": "long"}),
        ("tokenizer_config.json", {"sep_token": 7}),
    ],
)
def test_errors_of_other_libraries_are_one_sentence(folder, name, change):
    settings = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(settings | change))
    outcomes = [outcome(load) for load in loads(folder)]
    faults = [fault for fault in outcomes if fault is not None]
    assert faults
    for fault in faults:
        assert fault.startswith(f"model {folder}: ")
        assert "\n" not in fault


def outcome(load) -> str | None:
    """The ModelError of a load in words, or None where it succeeds; any other error is the test's failure."""
    try:
        load()
    except ModelError as error:
        return str(error)
    return None


def test_a_tokenizer_that_does_not_separate_the_texts_is_refused(folder):
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer | {"post_processor": None}))
    with pytest.raises(ModelError, match="puts no special token between query and document"):
        Reranker.load(folder, head="classifier")


def test_tokens_added_when_loading_are_counted_too(folder):
    """Those are in no tokenizer.json, so that only the loaded tokenizer shows them."""
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["additional_special_tokens"] = [f"[NEW{place}]" for place in range(30)]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    for load in loads(folder):
        with pytest.raises(ModelError, match=r"gives ids up to \d+, but its embedding has \d+ rows"):
            load()


def test_a_teacher_or_tuned_model_must_have_a_trained_head(folder):
    with pytest.raises(ModelError, match="is an encoder without a trained head"):
        Reranker.load(folder, head="trained")


@pytest.mark.parametrize("name", ["roberta", "bert"])
def test_a_bi_encoder_is_limited_to_its_positions(tiny, tmp_path, name):
    """RoBERTa's begin behind the padding's id, here 0, and its tokenizer names no length."""
    folder = Path(shutil.copytree(tiny[name], tmp_path / name))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("model_max_length")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    bi_encoder = BiEncoder(folder, max_length=256)
    model = bi_encoder.load("cpu")
    assert model.max_seq_length == {"roberta": 65, "bert": 66}[name]
    assert bi_encoder.encode(model, ["queue " * 200], "document", 1).shape == (1, 32)
