"""Fresh heads on an encoder, and the tokenizer that frames both texts for the interaction head."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from trainer import weights
from trainer.errors import ModelError
from trainer.interaction import InteractionConfig, InteractionForSequenceClassification

AutoConfig.register("interaction", InteractionConfig, exist_ok=True)
AutoModelForSequenceClassification.register(InteractionConfig, InteractionForSequenceClassification, exist_ok=True)


def with_interaction(
    folder: Path, tokenizer: PreTrainedTokenizerBase, layers: Sequence[int] | None
) -> InteractionForSequenceClassification:
    """Return an encoder under a fresh interaction head; layers above the deepest compared one are cut off."""
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
    settings.pop("_name_or_path", None)  # a path of this machine
    if "layer_types" in settings and settings["layer_types"]:
        settings["layer_types"] = settings["layer_types"][: settings["num_hidden_layers"]]
    config = InteractionConfig(
        encoder=settings,
        layers=chosen,
        separator_id=separator,
        special_ids=tuple(tokenizer.all_special_ids),
    )
    model = InteractionForSequenceClassification(config)
    state = {name: tensor for name, tensor in encoder.state_dict().items() if name in model.encoder.state_dict()}
    model.encoder.load_state_dict(state)
    model.start_head(torch.ones(len(model.token_weights)))
    return model


def with_classifier(folder: Path, trust_remote_code: bool, config: PreTrainedConfig | None = None) -> PreTrainedModel:
    """Return the standard model with one label on an encoder's weights, or on those of them that fit `config`.

    With `config` the caller sets the encoder's weights afterwards, and the head takes what the folder has for it.
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


def framed(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerFast:
    """The tokenizer, joining a pair as two framed texts: `[CLS] query [SEP] [CLS] document [SEP]`.

    An encoder that only ever read single texts rests its attention on the special tokens around them; without a [CLS]
    of its own the document's states are worse (measured in docs/results.md). The class is the plain one, because those
    of single architectures put their own frame back when they are loaded.
    """
    single: Any = tokenizer("a", return_special_tokens_mask=True)
    texts = [place for place, special in enumerate(single["special_tokens_mask"]) if not special]
    names: Any = tokenizer.convert_ids_to_tokens(single["input_ids"])
    before, behind = names[: texts[0]], names[texts[-1] + 1 :]
    frame = [[*before, f"${text}", *behind] for text in "AB"]
    ids = [(name, single["input_ids"][place]) for place, name in enumerate(names) if place not in texts]
    backend: Any = tokenizer.backend_tokenizer
    backend.post_processor = TemplateProcessing(single=frame[0], pair=frame[0] + frame[1], special_tokens=ids)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=tokenizer.model_max_length,
        model_input_names=["input_ids", "attention_mask"],  # the head finds the texts by the separator
        **tokenizer.special_tokens_map,
    )
