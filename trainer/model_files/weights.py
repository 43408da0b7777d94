"""Weights loaded with transformers, and its account of them read instead of printed.

transformers gives random values to every tensor that no file holds, and only prints a table of them. Here a tensor may
be new only where a new head is meant; anything else is a ModelError.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.utils import logging

from trainer.errors import ModelError, TrainerError, one_line
from trainer.model_files.references import name_of
from trainer.runtime.machine import is_exhausted

BUFFERS = ("position_ids", "token_type_ids", "inv_freq", "masked_bias")  # old files hold them; they are computed now
SHOWN = 3  # names in a message


@contextmanager
def loading(folder: Path) -> Iterator[None]:
    """Keep transformers from printing its own report; whatever a load raises becomes one ModelError."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    except TrainerError:
        raise
    except Exception as error:  # a dozen libraries and the model's own code, some with a bare Exception
        if is_exhausted(error):
            raise
        raise ModelError(
            f"model {name_of(folder)}: cannot be loaded ({type(error).__name__}: {one_line(error)[:300]}); fetch the "
            "model again, or take another"
        ) from error
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def load(auto: Any, folder: Path, *, new_head: bool = False, partial: bool = False, **options: Any) -> Any:
    """Return the float32 model of a transformers class from a folder, all of whose weights come from there.

    With `new_head`, what lies outside the encoder may be new; a pooler is part of the head. With `partial`, the caller
    sets the encoder's weights anyway. Raises ModelError where tensors are missing, left over, of another shape, not
    finite, or zero throughout.
    """
    with loading(folder):
        model, account = auto.from_pretrained(
            folder,
            dtype=torch.float32,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **options,
        )
    if not partial:
        require_all_weights(model, account, folder, new_head)
    return model


def require_all_weights(model: Any, account: dict[str, Any], folder: Path, new_head: bool) -> None:
    """Raise ModelError where the weights of `model` did not come from the files, by transformers' account of it."""
    name, is_bare = name_of(folder), model.base_model is model
    may_be_new = new_head or is_bare  # an encoder is loaded bare to get a head, or needs none
    missing = [key for key in account["missing_keys"] if not (may_be_new and _is_head(key, model))]
    left = [key for key in account["unexpected_keys"] if _is_encoders(key, model)]
    if missing:
        raise ModelError(
            f"model {name}: {len(missing)} of its {len(model.state_dict())} tensors are not in its files, such as "
            f"{_some(missing)}{_instead(account)}; the weights are of another model or incomplete: fetch it again"
        )
    if left:
        raise ModelError(
            f"model {name}: its files hold {len(left)} tensors that config.json has no use for, such as {_some(left)}; "
            "configuration and weights are of different models: fetch it again"
        )
    for key, held, wanted in sorted(account["mismatched_keys"]):
        if not (may_be_new and _is_head(key, model)):
            raise ModelError(
                f"model {name}: {key} is {tuple(held)} in its files, but {tuple(wanted)} by config.json; configuration "
                "and weights are of different models: fetch it again"
            )
    _require_numbers(model, name)


def _embedding(model: Any) -> torch.Tensor:
    """Return the token embedding (rows, width); that of a model without one, such as of images, is a single 1."""
    try:
        return model.get_input_embeddings().weight
    except (NotImplementedError, AttributeError):
        return torch.ones(1, 1)


def longest_text(encoder: Any) -> int | None:
    """Return how many tokens the positions of an encoder suffice for; None where they have no end.

    RoBERTa and its kin count from behind the padding's id, so that their first positions are never used.
    """
    positions = getattr(encoder.config, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions <= 0:
        return None
    embeddings = getattr(encoder, "embeddings", None)
    padding = None if isinstance(embeddings, nn.Embedding) else getattr(embeddings, "padding_idx", None)
    return positions - (padding + 1 if padding is not None else 0)


def require_rows(model: Any, tokenizer: Any, folder: Path) -> None:
    """Raise ModelError where the loaded tokenizer has ids for which the model has no embedding."""
    rows, highest = len(model.get_input_embeddings().weight), max(tokenizer.get_vocab().values())
    if highest >= rows:
        raise ModelError(
            f"model {name_of(folder)}: its tokenizer gives ids up to {highest}, but its embedding has {rows} rows; "
            "take the tokenizer that belongs to the weights, or resize the embedding (resize_token_embeddings) and "
            "save both again"
        )


def _require_numbers(model: Any, name: str) -> None:
    """Raise ModelError where a tensor is not finite, or the token embedding all zero."""
    for key, tensor in model.named_parameters():
        if not torch.isfinite(tensor.detach().abs().sum()):
            raise ModelError(f"model {name}: {key} holds values that are not finite; fetch the model again")
    if not _embedding(model).detach().any():
        raise ModelError(f"model {name}: its token embedding is zero throughout; fetch the model again")


def _is_head(key: str, model: Any) -> bool:
    """Return whether a tensor of the model belongs to a head: outside the encoder, or a pooler."""
    parts = key.split(".")
    if model.base_model is model:  # bare, or of a class that does not tell its encoder from its head
        return "pooler" in parts or parts[0] in ("classifier", "score")
    return parts[0] != model.base_model_prefix or "pooler" in parts


def _is_encoders(key: str, model: Any) -> bool:
    """Return whether a tensor of the files belongs to the encoder of the model."""
    inside = key.removeprefix(f"{model.base_model_prefix}.")
    parts = inside.split(".")
    known = {child for child, _ in model.base_model.named_children()}
    return parts[0] in known and "pooler" not in parts and parts[-1] not in BUFFERS


def _some(names: list[str]) -> str:
    return ", ".join(sorted(names)[:SHOWN])


def _instead(account: dict[str, Any]) -> str:
    """Name what the files hold instead, where they hold names that nobody asks for."""
    strange = sorted(account["unexpected_keys"])
    return f" (but {strange[0]})" if strange else ""
