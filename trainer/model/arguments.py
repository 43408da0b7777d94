"""Checks of the arguments of `Reranker.load`, `score` and `rank`, made before any work.

An argument of the wrong type raises TypeError, one with an impossible value ValueError.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np

from trainer.inference import FORMATS
from trainer.runtime.precision import Precision

ENGINES = ("auto", "torch", *FORMATS)
SHORTEST = 8  # tokens of a pair, as in a recipe; with fewer nothing of the document is left


def require_options(reference: object, precision: object, max_length: object) -> None:
    """Raise TypeError or ValueError for invalid arguments of `load`."""
    if not isinstance(reference, str | Path):
        hint = "; this run has exported no model (see RunResult.passed)" if reference is None else ""
        raise TypeError(f"reference must be a Hub id or a folder, not {type(reference).__name__}{hint}")
    if precision not in (known := (None, "auto", *get_args(Precision))):
        raise ValueError(f"precision must be one of {', '.join(map(str, known))}, not {precision!r}")
    if max_length is None:
        return
    if isinstance(max_length, bool) or not isinstance(max_length, int):
        raise TypeError(f"max_length must be a whole number of tokens, not {max_length!r}")
    if max_length < SHORTEST:
        raise ValueError(f"max_length must be {SHORTEST} tokens or more, not {max_length}")


def require_engine(engine: object, device: Any, precision: object) -> Any:
    """Return the device to compute on, which is the CPU for ONNX; raise ValueError if the arguments contradict it."""
    if engine not in ENGINES:
        raise ValueError(f"engine must be one of {', '.join(ENGINES)}, not {engine!r}")
    if engine not in FORMATS:
        return device
    if device is not None and str(device) != "cpu":
        raise ValueError(f"engine {engine} computes on the CPU, but device is {device}; leave out one of them")
    if precision in ("bf16", "fp16"):
        raise ValueError(f"engine {engine} has a precision of its own, but precision is {precision}; leave it out")
    return "cpu"


def as_texts(query: object, documents: Any) -> list[str]:
    """Return the documents as a list; raises TypeError unless the query is a text and the documents a list of texts."""
    if not isinstance(query, str):
        raise TypeError(f"query must be a text, not {type(query).__name__}")
    if isinstance(documents, str | bytes):
        raise TypeError("documents must be a list of texts; put a single text in a list")
    if isinstance(documents, Mapping) or not isinstance(documents, Iterable):
        raise TypeError(f"documents must be a list of texts, not {type(documents).__name__}")
    texts = list(documents)
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"documents must be a list of texts, but documents[{index}] is {type(text).__name__}")
    return texts


def as_pairs(pairs: Any) -> list[tuple[str, str]]:
    """Return the pairs as a list of tuples; raises TypeError unless they are (query, document) pairs of texts."""
    if isinstance(pairs, str | bytes | Mapping) or not isinstance(pairs, Iterable):
        raise TypeError(f"pairs must be a list of (query, document) pairs, not {type(pairs).__name__}")
    pairs = list(pairs)
    for index, pair in enumerate(pairs):
        if isinstance(pair, str):
            raise TypeError(
                f"pairs must be a list of (query, document) pairs, but pairs[{index}] is a text; put a single pair in "
                "a list"
            )
        if not isinstance(pair, tuple | list) or [isinstance(text, str) for text in pair] != [True, True]:
            raise TypeError(f"pairs[{index}] must be (query, document), two texts, not {pair!r:.60}")
    return [(query, document) for query, document in pairs]


def require_top_k(top_k: object) -> None:
    """Raise TypeError or ValueError unless `top_k` is None or a whole number of 1 or more."""
    if top_k is None:
        return
    if isinstance(top_k, bool) or not isinstance(top_k, int | np.integer):
        raise TypeError(f"top_k must be a whole number or None, not {top_k!r}")
    if top_k < 1:
        raise ValueError(f"top_k must be 1 or more, not {top_k}")
