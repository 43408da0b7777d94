"""The one-row head of a decoder: the last state to the logit of a token, or to the difference of two logits.

A causal language model becomes the standard `ForSequenceClassification` with one label. Its row is computed from the
rows of the language model head, in float32: `W[relevant] - W[irrelevant]`. With tied embeddings these are rows of the
embedding, which the head copies, so that training one does not move the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

from trainer.errors import ModelError
from trainer.model.prompt import pair_encoder, special_tokens
from trainer.model_files import weights
from trainer.model_files.checks import is_embedding, read_header, weight_files
from trainer.model_files.decoders import LANGUAGE_HEADS, TEMPLATES, Prompting, ranks_already, template_of, token_ids
from trainer.model_files.prompt import has_prompt
from trainer.model_files.references import BaseKind, name_of, read_config

BIASES = ("lm_head.bias", "embed_out.bias", "output.bias")


def with_score_row(
    folder: Path, tokenizer: PreTrainedTokenizerBase, prompting: Prompting, trust_remote_code: bool
) -> Any:
    """Return the causal model in a folder as a classifier with one label, whose score its prompt's tokens make.

    Raises ModelError if there are no such tokens, or if the family has no head of one linear layer.
    """
    config = read_config(folder)
    family = config.get("model_type")
    if family not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES and "auto_map" not in config:
        raise ModelError(
            f"model {name_of(folder)}: is a {family} model, for which transformers has no ForSequenceClassification; "
            "take another base"
        )
    ids = token_ids(folder, family, prompting, tokenizer.get_vocab())
    model = weights.load(
        AutoModelForSequenceClassification,
        folder,
        new_head=True,
        trust_remote_code=trust_remote_code,
        num_labels=1,
        pad_token_id=tokenizer.pad_token_id,
    )
    if not isinstance(getattr(model, "score", None), torch.nn.Linear):
        raise ModelError(f"model {name_of(folder)}: its family has no linear head for a score; take another base")
    with torch.no_grad():
        model.score.weight.copy_(score_row(folder, ids))
    return model


def score_row(folder: Path, ids: Sequence[int]) -> torch.Tensor:
    """Return the row (1, width) float32 that gives the score, from the ids (irrelevant, relevant) or (relevant,)."""
    held = {name: path for path in weight_files(folder) for name in read_header(path)}
    if biased := [name for name in held if name in BIASES]:
        raise ModelError(f"model {name_of(folder)}: its head has a bias ({biased[0]}), which one row cannot hold")
    heads = [name for name in LANGUAGE_HEADS if name in held]
    name = next(iter((*heads, *filter(is_embedding, held))), None)  # the embedding, if they are tied
    if name is None:
        raise ModelError(f"model {name_of(folder)}: its files hold no language model head and no embedding")
    with safe_open(held[name], framework="pt") as file:
        matrix = file.get_slice(name)
        rows = torch.cat([matrix[row : row + 1] for row in ids]).float()
    return rows[-1:] - rows[:1] if len(ids) > 1 else rows


def is_prompted(folder: Path, kind: BaseKind, prompting: Prompting) -> bool:
    """Return whether pairs of this model are joined by a prompt, and not by the tokenizer's pair template."""
    if kind != "reranker":
        return kind == "decoder"
    if prompting.template is not None or has_prompt(folder):
        return True
    family = read_config(folder).get("model_type")
    return ranks_already(folder) and (TEMPLATES / f"{family}.jinja").is_file()


def prepare_tokenizer(tokenizer: Any, folder: Path, prompting: Prompting, prompted: bool) -> None:
    """Give the tokenizer the prompt's template, or none, and a padding token with which its inputs never end.

    transformers reads the score of a decoder at the last token that is not padding. Raises ModelError if there is no
    usable template or no special token for padding.
    """
    config = read_config(folder)
    special = special_tokens(tokenizer)
    tokenizer.chat_template = template_of(folder, config.get("model_type"), prompting, special) if prompted else None
    if prompted:
        last = (pair_encoder(tokenizer, 1 << 20).after.ids or [None])[-1]
    elif tokenizer.pad_token is not None:
        return
    else:
        last = tokenizer("a", "a")["input_ids"][-1]
    by_config = tokenizer.convert_ids_to_tokens(config["pad_token_id"]) if config.get("pad_token_id") else None
    tokens = (tokenizer.pad_token, by_config, tokenizer.eos_token, tokenizer.unk_token, tokenizer.bos_token)
    usable = [token for token in tokens if token and tokenizer.convert_tokens_to_ids(token) != last]
    if not usable:
        raise ModelError(f"model {name_of(folder)}: has no special token for padding; add one to its tokenizer")
    tokenizer.pad_token = usable[0]
