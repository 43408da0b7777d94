"""Cross-encoders that sentence-transformers saved as modules: the same scores here, or one sentence."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder
from sentence_transformers.base.modules import Dense, Transformer
from sentence_transformers.sentence_transformer.modules import LayerNorm, Normalize, Pooling
from test_families import TEXT, write_family
from torch import nn

from trainer.errors import ModelError
from trainer.export.readers import score_transformers
from trainer.model import Reranker
from trainer.model_files.modules import HEADS
from trainer.model_files.references import kind_of

PAIRS = [(query, document) for query in ("why does the probe restart", "disk", "") for document in TEXT]
ACTIVATION = {"deberta-v2": nn.GELU, "electra": nn.GELU, "distilbert": nn.ReLU, "modernbert": nn.GELU}
WIDTH = 32


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """`encoder(family)` is the folder of a tiny encoder without a head, written once."""
    return cache(lambda family: write_family(family, "encoder", tmp_path_factory.mktemp(family)))


def saved(encoder: Path, folder: Path, *layers: nn.Module, pooling: str = "cls") -> CrossEncoder:
    """Save an encoder with these layers after its pooling as sentence-transformers does; their weights are random."""
    model = CrossEncoder(modules=[Transformer(str(encoder)), Pooling(WIDTH, pooling), *layers], device="cpu")
    torch.manual_seed(4)
    with torch.no_grad():
        for weight in [weight for layer in layers for weight in layer.parameters()]:
            weight.normal_(std=0.5)
    model.save_pretrained(str(folder))
    return model


def classifier(family: str, bias: bool = True) -> list[nn.Module]:
    """The layers of the family's standard classifier, as modules."""
    norm = [LayerNorm(WIDTH)] if HEADS[family].norm else []
    hidden = Dense(WIDTH, WIDTH, bias=bias, activation_function=ACTIVATION.get(family, nn.Tanh)())
    return [hidden, *norm, score()]


def score(outputs: int = 1, name: str = "scores", activation: nn.Module | None = None) -> nn.Module:
    return Dense(WIDTH, outputs, activation_function=activation or nn.Identity(), module_output_name=name)


def expected(folder: Path) -> np.ndarray:
    model = CrossEncoder(str(folder), device="cpu", activation_fn=nn.Identity())
    return model.predict(PAIRS, show_progress_bar=False)


@pytest.mark.parametrize("family", HEADS)
def test_scores_are_those_of_sentence_transformers(encoder, tmp_path, family):
    saved(encoder(family), tmp_path / "modular", *classifier(family, bias=family != "modernbert"))
    scores = expected(tmp_path / "modular")
    assert np.ptp(scores) > 1e-3
    assert kind_of(tmp_path / "modular") == "reranker"
    reranker = Reranker.load(tmp_path / "modular", head="trained")
    np.testing.assert_allclose(reranker.score(PAIRS), scores, rtol=0, atol=1e-5)
    reranker.save(tmp_path / "standard")
    assert not (tmp_path / "standard" / "modules.json").exists()
    np.testing.assert_allclose(score_transformers(tmp_path / "standard", PAIRS), scores, rtol=0, atol=1e-5)


def test_settings_of_the_modules_choose_the_settings_of_the_classifier(encoder, tmp_path):
    hidden = Dense(WIDTH, WIDTH, activation_function=nn.SiLU())
    saved(encoder("modernbert"), tmp_path / "mean", hidden, LayerNorm(WIDTH), score(), pooling="mean")
    reranker = Reranker.load(tmp_path / "mean")
    np.testing.assert_allclose(reranker.score(PAIRS), expected(tmp_path / "mean"), rtol=0, atol=1e-5)
    config = reranker.model.config
    assert (config.classifier_pooling, config.classifier_activation, config.classifier_bias) == ("mean", "silu", True)


def test_flags_of_earlier_versions_name_the_pooling(encoder, tmp_path):
    saved(encoder("bert"), tmp_path, *classifier("bert"))
    flags = {"word_embedding_dimension": WIDTH, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(flags))
    np.testing.assert_allclose(Reranker.load(tmp_path).score(PAIRS), expected(tmp_path), rtol=0, atol=1e-5)


REFUSED = {
    "one layer": (lambda: [score()], "cls", "consists of Pooling, Dense, Dense"),
    "normalised": (lambda: [Normalize(), *classifier("bert")], "cls", "consists of Pooling, Dense, Dense"),
    "mean": (lambda: classifier("bert"), "mean", "its pooling is mean"),
    "two poolings": (lambda: [Dense(2 * WIDTH, WIDTH), score()], ["cls", "max"], "its pooling is cls"),
    "three labels": (lambda: [Dense(WIDTH, WIDTH), score(3)], "cls", "its last layer gives 3 numbers"),
    "sigmoid": (lambda: [Dense(WIDTH, WIDTH), score(activation=nn.Sigmoid())], "cls", "goes through torch"),
    "another activation": (lambda: [Dense(WIDTH, WIDTH, activation_function=nn.GELU()), score()], "cls", "not tanh"),
    "residual": (lambda: [Dense(WIDTH, WIDTH, use_residual=True), score()], "cls", "residual connections"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_another_head_is_refused_in_one_sentence(encoder, tmp_path, case):
    layers, pooling, words = REFUSED[case]
    saved(encoder("bert"), tmp_path, *layers(), pooling=pooling)
    with pytest.raises(ModelError, match="has a head in separate modules .modules.json: sentence_transf") as caught:
        Reranker.load(tmp_path)
    assert words in str(caught.value)
    assert len(caught.value.faults) == 1


def test_pickled_layers_and_layers_of_another_shape_are_refused(encoder, tmp_path):
    saved(encoder("bert"), tmp_path, *classifier("bert"))
    weights = tmp_path / "2_Dense" / "model.safetensors"
    weights.write_bytes((tmp_path / "3_Dense" / "model.safetensors").read_bytes())
    with pytest.raises(ModelError, match="the weights of its module 2_Dense do not have the shape"):
        Reranker.load(tmp_path)
    weights.rename(weights.with_name("pytorch_model.bin"))
    with pytest.raises(ModelError, match="2_Dense holds no model.safetensors; pickled weights can run code"):
        Reranker.load(tmp_path)
