"""Fresh heads on an encoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from trainer.errors import ModelError
from trainer.model.interaction import InteractionConfig, InteractionForSequenceClassification
from trainer.model.tokenizer import frame
from trainer.model_files import weights


def with_interaction(
    folder: Path, tokenizer: PreTrainedTokenizerBase, layers: Sequence[int] | None
) -> InteractionForSequenceClassification:
    """Return an encoder with a fresh interaction head, without the layers above the last one that is compared."""
    encoder = weights.load(AutoModel, folder)
    depth = encoder.config.num_hidden_layers
    chosen = tuple(layers) if layers else tuple(round(share * depth) for share in (0, 1 / 3, 2 / 3, 1))
    if not chosen or min(chosen) < 0 or max(chosen) > depth:
        raise ModelError(
            f"reranker.layers: {list(chosen)} is not within 0..{depth}, the hidden layers of {folder.name}"
        )
    separator: Any = tokenizer.sep_token_id
    if separator is None or separator not in tokenizer("a")["input_ids"]:
        raise ModelError(f"reranker.head: the tokenizer of {folder.name} has no separator token; use head: classifier")
    settings = encoder.config.to_dict() | {"num_hidden_layers": max(max(chosen), 1)}
    settings.pop("_name_or_path", None)  # a local path
    if "layer_types" in settings and settings["layer_types"]:
        settings["layer_types"] = settings["layer_types"][: settings["num_hidden_layers"]]
    before, after = frame(tokenizer)
    config = InteractionConfig(
        encoder=settings,
        layers=chosen,
        separator_id=separator,
        opening_id=before[0] if before and after[-1] == separator else None,
        special_ids=tuple(tokenizer.all_special_ids),
        lexical=True,
    )
    model = InteractionForSequenceClassification(config)
    state = {name: tensor for name, tensor in encoder.state_dict().items() if name in model.encoder.state_dict()}
    model.encoder.load_state_dict(state)
    model.start_head(torch.ones(len(model.token_weights)))
    return model


def one_label(model: Any, column: int) -> None:
    """Reduce a classifier with several labels to one, in place: the logit of `column` minus the mean of the others.

    Of two labels this is the log-odds of the probability. It does not depend on a number that is added to all logits,
    which a softmax over the labels leaves free.
    """
    name, linear = next(
        (name, module)
        for name, module in reversed(list(model.named_modules()))
        if isinstance(module, torch.nn.Linear) and module.out_features == model.config.num_labels
    )
    share = torch.full((1, linear.out_features), -1.0 / (linear.out_features - 1))
    share[0, column] = 1.0
    row = torch.nn.Linear(linear.in_features, 1, bias=linear.bias is not None)
    with torch.no_grad():
        row.weight.copy_(share @ linear.weight)
        if linear.bias is not None:
            row.bias.copy_(share[0] @ linear.bias)
    model.set_submodule(name, row)
    model.num_labels = model.config.num_labels = 1


def with_classifier(folder: Path, trust_remote_code: bool, config: PreTrainedConfig | None = None) -> PreTrainedModel:
    """Return the standard `ForSequenceClassification` model with one label and the encoder weights of a folder.

    With `config`, weights in the folder that do not match it are skipped, because the caller sets the encoder's weights
    afterwards; the head keeps the weights that the folder has.
    """
    options = {"num_labels": 1} if config is None else {"config": config}
    return weights.load(
        AutoModelForSequenceClassification,
        folder,
        new_head=True,
        partial=config is not None,
        trust_remote_code=trust_remote_code,
        **options,
    )
