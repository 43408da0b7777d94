"""The LoRA adapter of an exported model: scaled to the chosen weights, and compared with the merged ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from trainer.errors import ExportError
from trainer.export.parity import TOLERANCE, largest_difference
from trainer.model import Reranker

FILE, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def write_adapter(trained: Path, share: float, row: Path, folder: Path) -> None:
    """Write the adapter of a training, scaled by the share of the trained weights that dev chose.

    The score row comes from the exported weights in `row`.
    """
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(trained, folder)
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    config["lora_alpha"] = config["lora_alpha"] * share
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    weights = load_file(folder / FILE)
    (name,) = (name for name in weights if name.endswith("score.weight"))
    for path in row.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            if "score.weight" in file.keys():  # noqa: SIM118
                weights[name] = file.get_tensor("score.weight")
    save_file(weights, folder / FILE, metadata={"format": "pt"})


def difference_to_merged(
    start: Path, adapter: Path, reranker: Reranker, pairs: Sequence[tuple[str, str]], trust_remote_code: bool
) -> float:
    """Return the largest difference of the scores of model and adapter to those of the merged weights, in float32.

    `start` is the model before training. Raises ExportError above the tolerance of rounding errors.
    """
    from peft import PeftModel

    base = Reranker.load(
        start, head="trained", precision="fp32", max_length=reranker.max_length, trust_remote_code=trust_remote_code
    )
    merged = reranker.score(pairs)
    PeftModel.from_pretrained(base.model, str(adapter))
    difference = largest_difference(base.score(pairs), np.array(merged))
    if difference > TOLERANCE:
        raise ExportError(
            f"export: the adapter's scores differ by {difference:.1e} from those of the merged weights, more than the "
            f"{TOLERANCE} of rounding errors; nothing was exported; please report this with the name of the base model"
        )
    return difference
