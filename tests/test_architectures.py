"""The lists of architectures, each tried: a tiny random model of it is trained one step, padded, saved and loaded."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer

from trainer.model import Reranker
from trainer.model_files.architectures import CLASSIFIER, DECODERS, INTERACTION, UNSUPPORTED, longest_text

QUERY = "why does the probe fail"
DOCUMENTS = ["liveness probe restarts the container", "disk", "kernel kills the process when memory runs out " * 3]
OFTEN = {"bert", "distilbert", "modernbert", "xlm-roberta"}  # the others are slow tests: half a second each
CLASSIFIER_OFTEN = {"deberta-v2", "mpnet"}

# Every architecture takes those of these keys that it knows; the rest lies in its config.json without effect.
SIZES = {
    **dict.fromkeys(["hidden_size", "d_model", "dim", "emb_dim", "embedding_size", "input_embedding_size"], 32),
    **dict.fromkeys(["output_embedding_size", "true_hidden_size", "intra_bottleneck_size"], 32),
    **dict.fromkeys(["intermediate_size", "hidden_dim", "d_ff", "encoder_ffn_dim", "decoder_ffn_dim"], 48),
    **dict.fromkeys(["num_hidden_layers", "n_layers", "num_layers", "encoder_layers", "decoder_layers"], 3),
    **dict.fromkeys(["num_attention_heads", "n_heads", "num_heads", "num_key_value_heads"], 2),
    **dict.fromkeys(["encoder_attention_heads", "decoder_attention_heads"], 2),
    **dict.fromkeys(["head_dim", "d_kv"], 16),
    **dict.fromkeys(["attention_window", "local_attention", "entity_vocab_size", "entity_emb_size"], 8),
    "max_position_embeddings": 128,
    "max_2d_position_embeddings": 64,
    "pad_token_id": 0,
    "cls_token_id": 2,
    "bos_token_id": 2,
    "sep_token_id": 3,
    "eos_token_id": 3,
    "decoder_start_token_id": 0,
}
OWN = {"lilt": {"hidden_size": 48}}  # its channels are a quarter as wide, and 32 / 4 is no width for two heads


def config_of(family: str, vocabulary: int) -> AutoConfig:
    kind = type(AutoConfig.for_model(family))
    names = {name for base in kind.__mro__ for name in getattr(base, "__annotations__", {})}
    sizes = {
        name: value
        for name, value in (SIZES | OWN.get(family, {})).items()
        if name in names | {"pad_token_id", "decoder_start_token_id"}
    }
    return kind(**sizes, vocab_size=vocabulary)


@pytest.fixture
def folder_of(tiny, tmp_path):
    """`folder_of(family)` is a tiny random encoder of it, with BERT's tokenizer."""

    def folder_of(family: str) -> Path:
        tokenizer = AutoTokenizer.from_pretrained(tiny["bert"])
        tokenizer.model_input_names = ["input_ids", "attention_mask"]
        torch.manual_seed(1)
        model = AutoModel.from_config(config_of(family, len(tokenizer)))
        assert model.num_parameters() < 3e6
        for saved in (model, tokenizer):
            saved.save_pretrained(tmp_path / family)
        return tmp_path / family

    return folder_of


def families(names: frozenset[str], often: set[str]) -> list:
    return [pytest.param(name, marks=[] if name in often else pytest.mark.slow) for name in sorted(names)]


def proof(reranker: Reranker, folder: Path) -> np.ndarray:
    """Check what every cross-encoder has to do, and return its scores."""
    scores = reranker.score(QUERY, DOCUMENTS)
    alone = [reranker.score(QUERY, [document])[0] for document in DOCUMENTS]
    np.testing.assert_allclose(scores, alone, rtol=0, atol=1e-5)  # padding changes nothing
    assert np.ptp(scores) > 1e-6
    tokens = reranker.pairs.tokenize([QUERY, *DOCUMENTS])
    reranker.model.train()
    reranker.model(**reranker.pairs.pad([(tokens[0], document) for document in tokens[1:]])).logits.sum().backward()
    assert all(torch.isfinite(tensor.grad).all() for tensor in reranker.model.parameters() if tensor.grad is not None)
    reranker.model.eval()
    reranker.save(folder / "again")
    np.testing.assert_allclose(Reranker.load(folder / "again").score(QUERY, DOCUMENTS), scores, rtol=0, atol=1e-6)
    return scores


@pytest.mark.parametrize("family", families(INTERACTION, OFTEN))
def test_the_interaction_head_on_every_family_that_is_listed(folder_of, family):
    folder = folder_of(family)
    reranker = Reranker.load(folder, head="interaction", max_length=48)
    scores = proof(reranker, folder)
    reranker.model.config.damping = 0.0  # an attention that ignores the bias would not notice
    assert np.abs(reranker.score(QUERY, DOCUMENTS) - scores).max() > 1e-4


@pytest.mark.parametrize("family", families(CLASSIFIER - INTERACTION, CLASSIFIER_OFTEN))
def test_a_classifier_on_every_family_that_is_listed(folder_of, family):
    folder = folder_of(family)
    proof(Reranker.load(folder, head="classifier", max_length=48), folder)


@pytest.mark.parametrize("family", families(CLASSIFIER, {"roberta", "mpnet"}))
def test_the_positions_that_config_json_tells_are_those_of_the_model(folder_of, family):
    folder = folder_of(family)
    head = "interaction" if family in INTERACTION else "classifier"
    longest = longest_text(AutoConfig.from_pretrained(folder).to_dict())
    if longest is not None:
        reranker = Reranker.load(folder, head=head, max_length=longest)
        reranker.score("queue " * 200, ["disk " * 200])


def test_no_family_is_in_two_lists():
    assert not DECODERS & (CLASSIFIER | set(UNSUPPORTED))
    assert not CLASSIFIER & set(UNSUPPORTED)
