"""The modules in which sentence-transformers saves a model, and the head of a cross-encoder that consists of them.

Such a cross-encoder is a bare transformer, a pooling, and layers: linear ones with an activation, and layer norms.
Where these are the layers of the family's standard classifier, they are loaded as that classifier; other heads are
refused, because no program could load the model that would leave here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from trainer.errors import ModelError
from trainer.model_files.decoders import LOGIT_SCORE
from trainer.model_files.references import BaseKind, is_modular, modules_of, name_of, read_config

ENCODER_MODULES = ("Transformer", "Pooling", "Normalize", "Dense")  # of a bi-encoder
# Activations by their class in torch, as transformers names them.
ACTIVATIONS = {"Tanh": "tanh", "GELU": "gelu", "ReLU": "relu", "SiLU": "silu", "Identity": "linear"}
SCORES, EMBEDDING = "scores", "sentence_embedding"  # what modules hand on
NORM_EPS = 1e-5  # of the layer norm of sentence-transformers


class StandardHead(NamedTuple):
    """The layers of a family's classifier by their names in its model, and the settings that choose among them.

    `activation` is the name of a fixed activation, or the key of config.json that names it.
    """

    dense: str
    activation: str
    row: str
    norm: str | None = None
    pooling_key: str | None = None  # of config.json; without one the first token's state is read
    bias_key: str | None = None  # of config.json; without one the dense layer has a bias


HEADS = {
    "albert": StandardHead("albert.pooler", "tanh", "classifier"),
    "bert": StandardHead("bert.pooler.dense", "tanh", "classifier"),
    "camembert": StandardHead("classifier.dense", "tanh", "classifier.out_proj"),
    "deberta-v2": StandardHead("pooler.dense", "pooler_hidden_act", "classifier"),
    "distilbert": StandardHead("pre_classifier", "relu", "classifier"),
    "electra": StandardHead("classifier.dense", "gelu", "classifier.out_proj"),
    "modernbert": StandardHead(
        "head.dense", "classifier_activation", "classifier", "head.norm", "classifier_pooling", "classifier_bias"
    ),
    "mpnet": StandardHead("classifier.dense", "tanh", "classifier.out_proj"),
    "roberta": StandardHead("classifier.dense", "tanh", "classifier.out_proj"),
    "xlm-roberta": StandardHead("classifier.dense", "tanh", "classifier.out_proj"),
}


class SavedHead(NamedTuple):
    """The folders of a head's layers, the standard head that they are, and its settings in config.json."""

    standard: StandardHead
    dense: Path
    norm: Path | None
    row: Path
    settings: dict[str, Any]


def saved_head(folder: Path) -> SavedHead:
    """Return the head of a modular cross-encoder; raises ModelError if it is not the family's standard classifier."""
    config = read_config(folder)
    _, *rest = modules_of(folder)
    names = [name.rpartition(".")[2] for name, _ in rest]
    settings = [_settings(folder / path) for _, path in rest]
    standard = HEADS.get(str(config.get("model_type")))
    chain = (
        ["Pooling", "Dense", "Dense"] if standard and not standard.norm else ["Pooling", "Dense", "LayerNorm", "Dense"]
    )
    if standard is None:
        raise _refusal(folder, rest[0][0], f"a {config.get('model_type')} model has no classifier of this kind")
    if names != chain:
        reason = f"the classifier of a {config['model_type']} model consists of {', '.join(chain)}"
        raise _refusal(folder, rest[-1][0], reason)
    pooling, dense, row = settings[0], settings[1], settings[-1]
    if reason := _other_pooling(standard, pooling) or _other_layers(standard, dense, row, config):
        raise _refusal(folder, rest[-1][0], reason)
    chosen: dict[str, Any] = {}
    if standard.pooling_key:
        chosen[standard.pooling_key] = _mode(pooling)
    if standard.bias_key:
        chosen[standard.bias_key] = bool(dense.get("bias", True))
    if standard.activation not in ACTIVATIONS.values():
        chosen[standard.activation] = _activation(dense)
    paths = [folder / path for _, path in rest]
    return SavedHead(standard, paths[1], paths[2] if standard.norm else None, paths[-1], chosen)


def fault_of_modules(folder: Path, kind: BaseKind) -> str | None:
    """Return the reason why a base would lose a head that sentence-transformers saved as modules; None without one."""
    if kind == "reranker" and is_modular(folder):
        saved_head(folder)
        return None
    for name, path in modules_of(folder):
        module = name.rpartition(".")[2]
        own = not name.startswith("sentence_transformers.")
        if kind == "decoder" and module == LOGIT_SCORE and not own:
            continue
        if own or module not in ENCODER_MODULES or _settings(folder / path).get("out_features") == 1:
            return _lost(name, "would be lost")
    return None


def _other_pooling(standard: StandardHead, pooling: dict[str, Any]) -> str | None:
    """Return the reason why a pooling is not that of a standard head, None if it is."""
    allowed = ("cls", "mean") if standard.pooling_key else ("cls",)
    mode = _mode(pooling)
    return None if mode in allowed else f"its pooling is {mode}, and this family's classifier reads {allowed[0]}"


def _other_layers(
    standard: StandardHead, dense: dict[str, Any], row: dict[str, Any], config: dict[str, Any]
) -> str | None:
    """Return the reason why linear layers are not those of a standard head, None if they are."""
    fixed = standard.activation if standard.activation in ACTIVATIONS.values() else None
    activation = _activation(dense)
    if row.get("out_features") != 1 or row.get("module_output_name") != SCORES:
        return f"its last layer gives {row.get('out_features')} numbers, and a score is one"
    if dense.get("out_features") != config.get("hidden_size", config.get("dim")):
        return f"its first layer gives {dense.get('out_features')} numbers, and not as many as the encoder"
    if dense.get("use_residual") or row.get("use_residual"):
        return "its layers have residual connections"
    if any(layer.get("module_input_name", EMBEDDING) != EMBEDDING for layer in (dense, row)):
        return "its layers do not follow each other"
    if activation is None or (fixed and activation != fixed):
        return f"its activation is {dense.get('activation_function')}, and not {fixed or 'known'}"
    if _activation(row) != "linear":
        return f"its score goes through {row.get('activation_function')}"
    if standard.norm and config.get("norm_eps", NORM_EPS) != NORM_EPS:
        return f"its layer norm has the epsilon {NORM_EPS} and its encoder {config['norm_eps']}"
    return None


def _mode(pooling: dict[str, Any]) -> str:
    """Return the name of a pooling; several at once are joined."""
    mode = pooling.get("pooling_mode")
    if mode is None:  # in files of earlier versions, a flag for each
        names = {"cls_token": "cls", "mean_tokens": "mean", "max_tokens": "max", "lasttoken": "lasttoken"}
        mode = [name for flag, name in names.items() if pooling.get(f"pooling_mode_{flag}")]
    return "+".join(mode) if isinstance(mode, list) else str(mode)


def _activation(layer: dict[str, Any]) -> str | None:
    """Return transformers' name of a dense module's activation, None if it is not known; the default is tanh."""
    name = str(layer.get("activation_function", "torch.nn.modules.activation.Tanh"))
    return ACTIVATIONS.get(name.rpartition(".")[2]) if name.startswith("torch.nn.modules.") else None


def _settings(module: Path) -> dict[str, Any]:
    """Return the settings of a module, empty if they cannot be read."""
    try:
        settings = json.loads((module / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return settings if isinstance(settings, dict) else {}


def _lost(module: str, reason: str) -> str:
    return (
        f"has a head in separate modules (modules.json: {module}), which {reason}; name a reranker with a standard "
        "classifier, or the encoder that it was made from"
    )


def _refusal(folder: Path, module: str, reason: str) -> ModelError:
    return ModelError(f"model {name_of(folder)}: {_lost(module, f'cannot be read as a standard one: {reason}')}")
