"""Checks of the arguments of `Reranker.load`, `score` and `rank`, made before any work.

An argument of the wrong type raises TypeError, one with an impossible value ValueError.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np

from trainer.errors import ModelError
from trainer.model_files.references import locate
from trainer.runtime.precision import Precision

SHORTEST = 8  # tokens of a pair, as in a recipe; with fewer nothing of the document is left
TRAINING_STAGES = ("distil", "train-2*", "train*")  # folders of a run with a checkpoint, the last one first


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


def model_folder(reference: str | Path) -> Path:
    """Return the model's folder, `export/model` for a run folder; raises ModelError if a run has no exported model."""
    try:
        folder = Path(reference).expanduser()
        exported, is_run = folder / "export" / "model", (folder / "data" / "done.json").is_file()
        if exported.is_dir():
            return locate(str(exported))
    except (OSError, RuntimeError):  # a name that is too long; the home folder of an unknown user
        return locate(str(reference))
    if is_run and not (folder / "config.json").is_file():
        trained = [path for stage in TRAINING_STAGES for path in sorted(folder.glob(f"{stage}/best"))]
        trained = [str(path) for path in trained if "." not in path.parent.name]  # not of a stage that is moved aside
        other = f", or name its best checkpoint {trained[0]}" if trained else ""
        raise ModelError(f"model {folder}: this run folder has no exported model; finish its run{other}")
    return locate(str(reference))


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
