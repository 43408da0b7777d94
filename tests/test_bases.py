"""Bases saved in unusual ways: several labels, half precision, shards, no padding token; the table of families."""

import json
from pathlib import Path

import decoders
import numpy as np
import pytest
import torch
from test_families import FAMILIES as EXPORTED
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

from trainer.errors import ModelError
from trainer.export.readers import score_transformers
from trainer.export.vllm import CLASSES
from trainer.model import Reranker, packing
from trainer.model_files.architectures import CLASSIFIER, DECODERS, INTERACTION
from trainer.model_files.references import relevant_label

PAIRS = [
    ("why does the probe fail", "liveness probe restarts the container"),
    ("disk", "inodes run out"),
    ("lag", "update waits"),
]
NLI = ["contradiction", "entailment", "neutral"]


def classifier(tiny: dict[str, Path], base: str, names: list[str], folder: Path) -> Path:
    """A random classifier with these labels over a tiny encoder, with its tokenizer."""
    config = AutoConfig.from_pretrained(tiny[base], id2label=dict(enumerate(names)), architectures=None)
    torch.manual_seed(7)
    model = AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.3)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny[base]).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("base", "names", "column"),
    [
        ("bert", ["LABEL_0", "LABEL_1"], 1),
        ("roberta", ["relevant", "irrelevant"], 0),
        ("modernbert", NLI, 1),
        ("bert", NLI, 1),
    ],
)
def test_a_classifier_with_several_labels_is_read_by_its_relevant_column(tiny, tmp_path, capsys, base, names, column):
    folder = classifier(tiny, base, names, tmp_path / "several")
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        logits = np.concatenate([model(**tokenizer(*pair, return_tensors="pt")).logits.numpy() for pair in PAIRS])
    others = np.delete(logits, column, axis=1).mean(axis=1)
    reranker = Reranker.load(folder, head="trained")
    np.testing.assert_allclose(reranker.score(PAIRS), logits[:, column] - others, rtol=0, atol=1e-5)
    assert f"logit of '{names[column]}'" in " ".join(capsys.readouterr().out.split())
    reranker.save(tmp_path / "one")
    np.testing.assert_allclose(score_transformers(tmp_path / "one", PAIRS), reranker.score(PAIRS), rtol=0, atol=1e-5)
    assert json.loads((tmp_path / "one" / "config.json").read_text())["id2label"] == {"0": "LABEL_0"}


def test_labels_without_a_known_meaning_are_refused(tiny, tmp_path):
    assert relevant_label(["LABEL_0", "LABEL_1", "LABEL_2"]) is None
    assert relevant_label(["yes", "true"]) is None
    folder = classifier(tiny, "bert", ["sad", "glad", "mad"], tmp_path)
    with pytest.raises(ModelError, match="3 labels .sad, glad, mad., of which none is known to mean relevant"):
        Reranker.load(folder)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_in_shards_are_read_whole_and_in_float32(tiny, tmp_path, dtype):
    model = AutoModelForSequenceClassification.from_pretrained(tiny["reranker"], dtype=dtype)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    AutoTokenizer.from_pretrained(tiny["reranker"]).save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    reranker = Reranker.load(tmp_path)
    assert {weight.dtype for weight in reranker.model.parameters()} == {torch.float32}
    expected = Reranker.load(tiny["reranker"])
    expected.model.load_state_dict(
        {name: weight.to(dtype).float() for name, weight in expected.model.state_dict().items()}
    )
    weights, exact = reranker.model.state_dict(), expected.model.state_dict()
    assert weights.keys() == exact.keys()
    assert all(torch.equal(weights[name], exact[name]) for name in weights)
    # MKL's last bits depend on where in memory a weight lies.
    np.testing.assert_allclose(reranker.score(PAIRS), expected.score(PAIRS), rtol=1e-6)


def test_a_model_without_a_padding_token_gets_one_that_every_reader_uses(tiny, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny["reranker"])
    tokenizer.pad_token = None
    AutoModelForSequenceClassification.from_pretrained(tiny["reranker"]).save_pretrained(tmp_path / "without")
    tokenizer.save_pretrained(tmp_path / "without")
    reranker = Reranker.load(tmp_path / "without")
    np.testing.assert_array_equal(reranker.score(PAIRS), Reranker.load(tiny["reranker"]).score(PAIRS))
    reranker.save(tmp_path / "with")
    np.testing.assert_allclose(score_transformers(tmp_path / "with", PAIRS), reranker.score(PAIRS), rtol=0, atol=1e-5)


FAMILIES = Path(__file__).parents[1] / "docs" / "training.md"


def table() -> dict[str, list[str]]:
    """The table of families in docs/training.md, by model_type."""
    rows = [line.strip("| \n").split(" | ") for line in FAMILIES.read_text().splitlines() if line.startswith("| `")]
    return {name: cells for names, *cells in rows for name in names.replace("`", "").split(", ")}


def test_the_table_of_families_says_what_the_code_does():
    rows = table()
    assert {"deberta-v2", "electra", "mpnet", "distilbert", "xlm-roberta", "camembert", "modernbert"} <= rows.keys()
    assert {"gte", "jina_embeddings_v3", "nomic_bert", "qwen3", "qwen2", "llama", "gemma", "mistral"} <= rows.keys()
    for family, (trains, packed, interaction, onnx, tei, vllm) in rows.items():
        assert (trains == "yes") == (family in CLASSIFIER | DECODERS)
        assert (packed == "yes") == (family in (*packing.ENCODERS, *packing.DECODERS))
        assert (interaction == "yes") == (family in INTERACTION)
        assert tei != "yes" or family not in DECODERS
        assert (onnx == "yes") == (family in EXPORTED or family in decoders.FAMILIES)  # their slow tests export graphs
        assert (vllm == "yes") == (MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.get(family) in CLASSES)
