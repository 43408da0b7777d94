"""Check that fastembed or Infinity gives the scores of exported folders.

    python scripts/check_readers.py --build FOLDER       # in the exporting environment: a folder for each family
    python scripts/check_readers.py --write FOLDER ...   # or a folder of your own: writes FOLDER.scores.json
    other/bin/python scripts/check_peers.py FOLDER ...   # where fastembed or infinity-emb is installed; exit code 1
                                                         # where a score differs by more than rounding

Nothing of this package is needed. fastembed scores pairs in this process; Infinity's server gets a request for each
query over loopback. Both read special tokens in a text, such as [SEP], as separators, so pairs with them are left out;
for Infinity also pairs with whitespace around a text, which it removes: byte-level tokenizers have tokens for it.
Folders of the interaction head contain Python code, which Infinity runs.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

os.environ |= {"DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}

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
    if score is infinity:
        kept = [row for row in kept if all(text == text.strip() for text in content["pairs"][row])]
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
    """Return logits (pairs,) by Infinity's server with its engine torch, a request for each query."""
    from infinity_emb import EngineArgs, create_server  # pyright: ignore[reportMissingImports]

    settings = {"engine": "torch", "device": "cpu", "dtype": "float32", "batch_size": 8}
    settings |= {"bettertransformer": False, "model_warmup": False}  # which would score thousands of pairs
    engine = EngineArgs(model_name_or_path=str(folder), served_model_name="peer", **settings)
    scores = np.full(len(pairs), np.nan)
    with listening(create_server(engine_args_list=[engine])) as address:
        for query in dict.fromkeys(query for query, _ in pairs):
            rows = [row for row, pair in enumerate(pairs) if pair[0] == query]
            body = {"model": "peer", "query": query, "documents": [pairs[row][1] for row in rows], "raw_scores": True}
            for result in post(f"{address}/rerank", body)["results"]:
                scores[rows[result["index"]]] = result["relevance_score"]
    return scores


@contextmanager
def listening(app: Any) -> Iterator[str]:
    """Serve an application on loopback in another thread, and yield its address when it has started."""
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="on"))
    with socket.create_server(("127.0.0.1", 0)) as bound:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        while thread.is_alive() and not server.started:
            time.sleep(0.1)
        try:
            yield f"http://127.0.0.1:{bound.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


def post(address: str, body: dict[str, Any]) -> Any:
    """Send a body, and return the answer; raise RuntimeError with what the server says if it refuses."""
    request = urllib.request.Request(address, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=300) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        raise RuntimeError(f"{error.code} {error.read().decode(errors='replace')}") from None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


PACKAGES = ("fastembed", "infinity-emb", "onnxruntime", "torch", "transformers", "sentence-transformers")
PEERS = {"fastembed": fastembed, "infinity_emb": infinity}

if __name__ == "__main__":
    main()
