"""Score pairs with an exported folder in other libraries, each with the folder's own tokenizer.

Nothing of this package is imported, so that scripts/check_readers.py can run this file in environments with other
versions: transformers 4.51 to 5 and sentence-transformers 4 to 6.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoModelForSequenceClassification, AutoTokenizer

Pairs = Sequence[tuple[str, str]]
BATCH = 8
GRAPH = Path("onnx") / "model.onnx"  # in the exported folder
# transformers 4.56 renamed the argument for the dtype of the weights.
_DTYPE = "dtype" if tuple(map(int, transformers.__version__.split(".")[:2])) >= (4, 56) else "torch_dtype"


def score_transformers(
    folder: Path, pairs: Pairs, dtype: str = "float32", device: str = "cpu", batch: int = BATCH
) -> np.ndarray:
    """Return logits (pairs,) float32 by transformers alone, with weights loaded as `dtype`, in padded batches."""
    tokenizer = _tokenizer(folder)
    model: Any = AutoModelForSequenceClassification.from_pretrained(
        folder, trust_remote_code=_brings_code(folder), **{_DTYPE: getattr(torch, dtype)}
    )
    model = model.to(device).eval()

    def score(queries: list[str], documents: list[str]) -> np.ndarray:
        inputs = _inputs(tokenizer, queries, documents, "pt").to(device)
        with torch.inference_mode():
            return model(**inputs).logits.float().cpu().numpy()

    return _in_batches(score, pairs, batch)


def score_sentence_transformers(folder: Path, pairs: Pairs, dtype: str = "float32", device: str = "cpu") -> np.ndarray:
    """Return logits (pairs,) float32 by sentence-transformers' CrossEncoder, with weights loaded as `dtype`."""
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(
        str(folder),
        device=device,
        trust_remote_code=_brings_code(folder),
        model_kwargs={_DTYPE: getattr(torch, dtype)},
    )
    scores: Any = model.predict(
        [list(pair) for pair in pairs], batch_size=BATCH, convert_to_tensor=True, show_progress_bar=False
    )
    return scores.float().cpu().numpy()


def score_onnx(folder: Path, pairs: Pairs, graph: Path = GRAPH) -> np.ndarray:
    """Return logits (pairs,) float32 by ONNX Runtime on the CPU, with those tokenizer outputs that the graph takes."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(folder / graph), providers=["CPUExecutionProvider"])
    tokenizer = _tokenizer(folder)
    names = [tensor.name for tensor in session.get_inputs()]

    def score(queries: list[str], documents: list[str]) -> np.ndarray:
        inputs = _inputs(tokenizer, queries, documents, "np")
        logits: Any = session.run(["logits"], {name: inputs[name].astype(np.int64) for name in names})[0]
        return logits

    return _in_batches(score, pairs)


def _tokenizer(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=_brings_code(folder))


def _inputs(tokenizer: Any, queries: list[str], documents: list[str], tensors: str) -> Any:
    """Return a padded batch of pairs, in the prompt of the chat template if there is one."""
    if tokenizer.chat_template is None:
        return tokenizer(queries, documents, padding=True, truncation=True, return_tensors=tensors)
    rows = [_prompt(tokenizer, query, document) for query, document in zip(queries, documents, strict=True)]
    one, other = (_prompt(tokenizer, "", document)[::-1] for document in ("0", "1 2 3 4"))
    shared = next(number for number, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1])
    ending, most = one[:shared][::-1], tokenizer.model_max_length
    rows = [row if len(row) <= most else row[: most - shared] + ending for row in rows]
    return tokenizer.pad({"input_ids": rows}, return_tensors=tensors)


def _prompt(tokenizer: Any, query: str, document: str) -> list[int]:
    """Return the ids of the prompt of a pair."""
    messages = [{"role": "query", "content": query}, {"role": "document", "content": document}]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _brings_code(folder: Path) -> bool:
    """Return whether the folder contains the model's own code."""
    return "auto_map" in json.loads((folder / "config.json").read_text(encoding="utf-8"))


def _in_batches(score: Callable[[list[str], list[str]], np.ndarray], pairs: Pairs, batch: int = BATCH) -> np.ndarray:
    """Return scores (pairs,) computed in batches."""
    parts = []
    for start in range(0, len(pairs), batch):
        queries, documents = map(list, zip(*pairs[start : start + batch], strict=True))
        parts.append(score(queries, documents))
    return np.concatenate(parts).squeeze(1)
