"""Check that fastembed or Infinity gives the scores of exported folders.

    python scripts/check_readers.py --write FOLDER ...   # in the exporting environment: writes FOLDER.scores.json
    other/bin/python scripts/check_peers.py FOLDER ...   # where fastembed or infinity-emb is installed; exit code 1
                                                         # where a score differs by more than rounding

Nothing of this package is needed. Both read special tokens in a text, such as [SEP], as separators, so pairs with them
are left out. Folders of the interaction head contain Python code, which Infinity runs.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import numpy as np

TOLERANCE = 1e-3  # largest difference of float32 logits that rounding explains
Pairs = Sequence[tuple[str, str]]


def main() -> None:
    """Compare the scores of every folder by each peer that is installed."""
    parser = argparse.ArgumentParser(description="Compare the scores of exported folders with those of a peer.")
    parser.add_argument("folders", nargs="+", type=Path)
    peers = [score for module, score in PEERS.items() if find_spec(module)]
    folders = parser.parse_args().folders
    print("; ".join(f"{name} {found}" for name in PACKAGES if (found := _version(name))))
    if not all([compare(folder, score) for folder in folders for score in peers]):  # a list, so that all are compared
        sys.exit(1)


def compare(folder: Path, score: Callable[[Path, Pairs], np.ndarray]) -> bool:
    """Print a peer's largest difference to the written scores; return whether it is small."""
    content = json.loads(folder.with_name(f"{folder.name}.scores.json").read_text(encoding="utf-8"))
    added = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
    special = [token["content"] for token in added]
    kept = [row for row, pair in enumerate(content["pairs"]) if not any(token in "\n".join(pair) for token in special)]
    pairs = [tuple(content["pairs"][row]) for row in kept]
    try:
        difference = float(np.abs(score(folder, pairs) - np.array(content["scores"])[kept]).max())
    except Exception as error:  # a peer may raise anything, which is the result
        print(f"{folder}: {score.__name__}: {type(error).__name__}: {' '.join(str(error).split())[:200]}")
        return False
    print(f"{folder}: {score.__name__} {difference:.1e} over {len(pairs)} pairs")
    return difference <= TOLERANCE


def fastembed(folder: Path, pairs: Pairs) -> np.ndarray:
    """Return logits (pairs,) by fastembed."""
    from fastembed.common.model_description import ModelSource  # pyright: ignore[reportMissingImports]
    from fastembed.rerank.cross_encoder import TextCrossEncoder  # pyright: ignore[reportMissingImports]

    name = f"local/{folder.parent.name}-{folder.name}"
    TextCrossEncoder.add_custom_model(model=name, model_file="onnx/model.onnx", sources=ModelSource(hf=name))
    model = TextCrossEncoder(name, specific_model_path=str(folder))
    return np.array(list(model.rerank_pairs(pairs, batch_size=8)))


def infinity(folder: Path, pairs: Pairs) -> np.ndarray:
    """Return logits (pairs,) by the model class of Infinity's torch engine, which its server calls."""
    from infinity_emb.args import EngineArgs  # pyright: ignore[reportMissingImports]
    from infinity_emb.transformer.crossencoder.torch import CrossEncoderPatched  # pyright: ignore[reportMissingImports]

    settings = {"engine": "torch", "device": "cpu", "dtype": "float32", "bettertransformer": False}
    model = CrossEncoderPatched(engine_args=EngineArgs(model_name_or_path=str(folder), **settings))
    batches = [pairs[start : start + 8] for start in range(0, len(pairs), 8)]
    return np.concatenate([model.encode_post(model.encode_core(model.encode_pre(batch))) for batch in batches])


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


PACKAGES = ("fastembed", "infinity-emb", "onnxruntime", "torch", "transformers", "sentence-transformers")
PEERS = {"fastembed": fastembed, "infinity_emb": infinity}

if __name__ == "__main__":
    main()
