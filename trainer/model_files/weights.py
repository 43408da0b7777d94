"""Loading of weights with transformers, and a check that every tensor comes from the files.

transformers initialises every tensor that no file holds at random, and only prints a table of them. Here only the
tensors of a new head may be missing; any other missing tensor is a ModelError.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.utils import logging

from trainer.errors import ModelError, TrainerError, one_line
from trainer.model_files.references import name_of
from trainer.runtime.machine import is_exhausted

BUFFERS = ("position_ids", "token_type_ids", "inv_freq", "masked_bias")  # in old files; transformers computes them now
SHOWN = 3  # tensor names in a message


@contextmanager
def loading(folder: Path) -> Iterator[None]:
    """Silence transformers while the block loads a model, and raise any of its errors as a ModelError."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    except TrainerError:
        raise
    except Exception as error:  # from many libraries and the model's own code, some of them a plain Exception
        if is_exhausted(error):
            raise
        raise ModelError(
            f"model {name_of(folder)}: cannot be loaded ({type(error).__name__}: {one_line(error)[:300]}); fetch the "
            "model again, or use another"
        ) from error
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def load(auto: Any, folder: Path, *, new_head: bool = False, partial: bool = False, **options: Any) -> Any:
    """Load a model of the transformers class `auto` in float32, and require that all weights come from the folder.

    With `new_head`, tensors outside the encoder may be missing; a pooler is part of the head. With `partial` nothing is
    checked, since the caller sets the encoder's weights itself. Raises ModelError if tensors are missing, unexpected,
    of another shape, not finite, or all zero.
    """
    with loading(folder):
        model, info = auto.from_pretrained(
            folder,
            dtype=torch.float32,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **options,
        )
    if not partial:
        require_all_weights(model, info, folder, new_head)
    return model


def require_all_weights(model: Any, info: dict[str, Any], folder: Path, new_head: bool) -> None:
    """Raise ModelError if weights of `model` do not come from the files; `info` is transformers' loading info."""
    name, is_bare = name_of(folder), model.base_model is model
    may_be_new = new_head or is_bare  # an encoder is loaded without a head to get a new one, or needs none
    missing = [key for key in info["missing_keys"] if not (may_be_new and _is_head(key, model))]
    unexpected = [key for key in info["unexpected_keys"] if _is_in_encoder(key, model)]
    if missing:
        own_code = getattr(model.config, "auto_map", None) and type(model).__module__.startswith("transformers.models.")
        if own_code and info["unexpected_keys"]:
            raise ModelError(
                f"model {name}: its weights ({_some(info['unexpected_keys'])}) are for Python code of its "
                "own (auto_map in config.json), which is not run by default; read it, then set trust_remote_code: true"
            )
        raise ModelError(
            f"model {name}: {len(missing)} of its {len(model.state_dict())} tensors are not in its files, such as "
            f"{_some(missing)}{_instead(info)}; the weights are of another model or incomplete: fetch it again"
        )
    if unexpected:
        raise ModelError(
            f"model {name}: its files hold {len(unexpected)} tensors that do not belong to the model in config.json, "
            f"such as {_some(unexpected)}; configuration and weights are of different models: fetch it again"
        )
    for key, held, wanted in sorted(info["mismatched_keys"]):
        if not (may_be_new and _is_head(key, model)):
            raise ModelError(
                f"model {name}: {key} has the shape {tuple(held)} in its files, but {tuple(wanted)} by config.json; "
                "configuration and weights are of different models: fetch it again"
            )
    _require_finite(model, name)


def _embedding(model: Any) -> torch.Tensor:
    """Return the token embedding (rows, width), or a single 1 for a model without one, such as an image model."""
    try:
        return model.get_input_embeddings().weight
    except (NotImplementedError, AttributeError):
        return torch.ones(1, 1)


def longest_text(encoder: Any) -> int | None:
    """Return the longest input of an encoder in tokens, None if it has no limit.

    RoBERTa and similar models count positions from the padding's id + 1, so that their first ones are never used.
    """
    positions = getattr(encoder.config, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions <= 0:
        return None
    embeddings = getattr(encoder, "embeddings", None)
    padding = None if isinstance(embeddings, nn.Embedding) else getattr(embeddings, "padding_idx", None)
    return positions - (padding + 1 if padding is not None else 0)


def require_rows(model: Any, tokenizer: Any, folder: Path) -> None:
    """Raise ModelError if the loaded tokenizer has ids for which the model has no embedding."""
    rows, highest = len(model.get_input_embeddings().weight), max(tokenizer.get_vocab().values())
    if highest >= rows:
        raise ModelError(
            f"model {name_of(folder)}: its tokenizer gives ids up to {highest}, but its embedding has {rows} rows; "
            "use the tokenizer that belongs to the weights, or resize the embedding (resize_token_embeddings) and "
            "save both again"
        )


def _require_finite(model: Any, name: str) -> None:
    """Raise ModelError if a tensor is not finite, or the token embedding all zero."""
    for key, tensor in model.named_parameters():
        if not torch.isfinite(tensor.detach().abs().sum()):
            raise ModelError(f"model {name}: {key} holds values that are not finite; fetch the model again")
    if not _embedding(model).detach().any():
        raise ModelError(f"model {name}: its token embedding is all zero; fetch the model again")


def _is_head(key: str, model: Any) -> bool:
    """Return True if a tensor of the model belongs to a head: outside the encoder, or a pooler."""
    parts = key.split(".")
    if model.base_model is model:  # no head, or of a class that does not separate its encoder from its head
        return "pooler" in parts or parts[0] in ("classifier", "score")
    return parts[0] != model.base_model_prefix or "pooler" in parts


def _is_in_encoder(key: str, model: Any) -> bool:
    """Return True if a tensor in the files belongs to the model's encoder."""
    inside = key.removeprefix(f"{model.base_model_prefix}.")
    parts = inside.split(".")
    known = {child for child, _ in model.base_model.named_children()}
    return parts[0] in known and "pooler" not in parts and parts[-1] not in BUFFERS


def _some(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)[:SHOWN])


def _instead(info: dict[str, Any]) -> str:
    """Return an example of the unexpected tensors in the files, or an empty string."""
    unexpected = sorted(info["unexpected_keys"])
    return f" (but {unexpected[0]} is)" if unexpected else ""
