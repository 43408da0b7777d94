"""LoRA (Hu et al., ICLR 2022): trained low-rank matrices beside the frozen linear layers of a decoder.

The model stays the same object, with peft's layers inside. What is saved are plain weights: the product of the two
matrices is added to each layer in float32, so that evaluation, interpolation and export see an ordinary model.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from copy import copy
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from trainer.errors import RunError
from trainer.model import Reranker
from trainer.recipe import Train

ADAPTER_FOLDER = "adapter"  # in the folder of a trained model
FILE, CONFIG = "adapter_model.safetensors", "adapter_config.json"
ROW = "score.weight"
NAME = "default"  # of peft's adapter, part of the names of its weights
PREFIX = "base_model.model."  # of the names in an adapter's file, as peft writes them


def add_adapter(section: Train, reranker: Reranker, ranks: bool) -> None:
    """Freeze the model and add low-rank matrices to all linear layers below its head, in place.

    The score row is trained if `train.adapter_score_row` says so, by default if the base does not rank yet. Raises
    RunError if peft is not installed, or the model has no linear layers.
    """
    try:
        from peft import inject_adapter_in_model
    except ImportError:
        raise RunError("train.adapter: lora needs a package: pip install 'domain-reranker[lora]'") from None
    inject_adapter_in_model(lora_config(section, reranker.model), reranker.model, NAME)
    row = section.adapter_score_row
    is_trained = row == "trained" or (row == "auto" and not ranks)
    for name, weight in reranker.model.named_parameters():
        weight.requires_grad_(".lora_" in name or (is_trained and name == ROW))


def lora_config(section: Train, model: Any) -> Any:
    """Return peft's configuration of the adapter of a model; raises RunError if the model has no linear layers."""
    from peft import LoraConfig

    alpha: Any = alpha_of(section)  # peft declares a whole number, and only divides it
    # Whole names: peft compares ends of names, and the layer `0` of an nn.Sequential ends as the model's first layer.
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name != "score"]
    if not linear:
        kind = model.config.model_type
        raise RunError(f"train.adapter: lora needs linear layers, and {kind} models have none; set it to none")
    return LoraConfig(
        r=section.adapter_rank,
        lora_alpha=alpha,
        target_modules=linear,
        lora_dropout=section.dropout,
        task_type="SEQ_CLS",
    )


def alpha_of(section: Train) -> float:
    """Return the factor of the adapter's product, before division by the rank."""
    return section.adapter_alpha or 2.0 * section.adapter_rank


@torch.no_grad()
def merged(state: Mapping[str, Tensor], section: Train) -> dict[str, Tensor]:
    """Return plain weights by name, in main memory, from those of a model with an adapter, added in float32."""
    weights = {}
    for name, weight in state.items():
        if ".lora_" in name:
            continue
        if name.endswith(".base_layer.weight"):
            layer = name.removesuffix(".base_layer.weight")
            down, up = (state[f"{layer}.lora_{side}.{NAME}.weight"] for side in "AB")
            weight = weight.float() + alpha_of(section) / section.adapter_rank * (up.float() @ down.float())
        weights[name.replace(".base_layer.", ".")] = weight.cpu()
    return weights


def save_adapter(state: Mapping[str, Tensor], model: Any, base: str, folder: Path) -> None:
    """Write the adapter as peft reads it, with the score row, which a causal base does not have."""
    config = copy(model.peft_config[NAME])
    config.base_model_name_or_path, config.modules_to_save, config.inference_mode = base, ["score"], True
    config.target_modules = sorted(config.target_modules)  # a set, whose order changes from run to run
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    own = {name.replace(f".{NAME}.", "."): weight for name, weight in state.items() if ".lora_" in name}
    own[ROW] = state[ROW]
    _write({PREFIX + name: weight.detach().cpu().contiguous() for name, weight in own.items()}, folder)


def keep_adapter(trained: Path, share: float, best: Path) -> None:
    """Copy the adapter of the trained weights into the folder of the best ones, which are a share of the way to them.

    The adapter is scaled by that share, and its score row is that of the best weights.
    """
    if not (trained / ADAPTER_FOLDER).is_dir() or not share:
        return
    folder = Path(shutil.copytree(trained / ADAPTER_FOLDER, best / ADAPTER_FOLDER, dirs_exist_ok=True))
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    config["lora_alpha"] *= share
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    weights = load_file(folder / FILE)
    for path in best.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            if ROW in file.keys():  # noqa: SIM118
                weights[PREFIX + ROW] = file.get_tensor(ROW)
    _write(weights, folder)


def _write(weights: dict[str, Tensor], folder: Path) -> None:
    """Write an adapter's weights with the mode of its configuration; safetensors makes files only their owner reads."""
    save_file(weights, folder / FILE, metadata={"format": "pt"})
    (folder / FILE).chmod((folder / CONFIG).stat().st_mode)
