"""A cross-encoder whose head sentence-transformers saved as modules, loaded as the family's standard classifier."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForSequenceClassification

from trainer.errors import ModelError
from trainer.model_files import weights
from trainer.model_files.modules import saved_head
from trainer.model_files.references import name_of


def with_saved_head(folder: Path, trust_remote_code: bool) -> Any:
    """Return the transformer in a folder with the head of its modules, as `ForSequenceClassification` with one label.

    The bias of a layer norm before the score is added to the score's, because this norm has none in some families.
    Raises ModelError if the head is no standard classifier, or its files do not have the layers' shapes.
    """
    head = saved_head(folder)
    model = weights.load(
        AutoModelForSequenceClassification,
        folder,
        new_head=True,
        trust_remote_code=trust_remote_code,
        num_labels=1,
        **head.settings,
    )
    dense, row = (_tensors(path, "linear") for path in (head.dense, head.row))
    if head.norm is not None and head.standard.norm is not None:
        norm = _tensors(head.norm, "norm")
        row["bias"] = row.get("bias", torch.zeros(1)) + row["weight"] @ norm["bias"]
        _fill(model.get_submodule(head.standard.norm), {"weight": norm["weight"]}, head.norm)
    _fill(model.get_submodule(head.standard.dense), dense, head.dense)
    _fill(model.get_submodule(head.standard.row), row, head.row)
    return model


def _tensors(module: Path, layer: str) -> dict[str, torch.Tensor]:
    """Return the float32 tensors of a module's only layer, by name."""
    path = module / "model.safetensors"
    if not path.is_file():
        raise ModelError(
            f"model {name_of(module.parent)}: its module {module.name} holds no model.safetensors; pickled weights can "
            "run code, so convert them"
        )
    return {name.removeprefix(f"{layer}."): tensor.float() for name, tensor in load_file(path).items()}


@torch.no_grad()
def _fill(layer: nn.Module, tensors: dict[str, torch.Tensor], module: Path) -> None:
    """Set a layer's weights; a bias that the files do not hold is zero."""
    for name, weight in layer.named_parameters():
        value = tensors.get(name, torch.zeros_like(weight)) if name == "bias" else tensors.get(name)
        if value is None or value.shape != weight.shape:
            raise ModelError(
                f"model {name_of(module.parent)}: the weights of its module {module.name} do not have the shape that "
                "its settings say; fetch the model again"
            )
        weight.copy_(value)
