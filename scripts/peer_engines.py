"""sentence-transformers' CrossEncoder with one of its backends, as a process that bench_engines.py asks for rounds.

    PYTHON scripts/peer_engines.py FOLDER ENGINE

It needs sentence-transformers alone, with its extra `onnx` or `openvino`, and so runs in an environment of its own.
FOLDER has the checkpoint in base/, and the texts and `max_length` in pairs.json. The first line of the output is the
batch size that was fastest; then each line of the input is answered with one round, {"seconds": ..., "cpu": ...}. At
the end of the input the scores are written to FOLDER/scores-ENGINE.npy.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import CrossEncoder

BATCH_SIZES = (16, 32, 64)
PROBE_PAIRS = 64  # pairs on which the batch size is chosen


def on_torch(dtype: torch.dtype) -> Callable[[Path, int], CrossEncoder]:
    """Return the function that loads the checkpoint for torch."""
    options = {"dtype": dtype, "attn_implementation": "sdpa"}
    return lambda folder, length: CrossEncoder(str(folder), max_length=length, model_kwargs=options)


def on_onnx(folder: Path, length: int, optimised: str | None = None, quantised: str | None = None) -> CrossEncoder:
    """Load the checkpoint for ONNX Runtime: as it is exported, with fused operators, with int8 weights."""
    from sentence_transformers import export_dynamic_quantized_onnx_model, export_optimized_onnx_model

    file = "onnx/model.onnx"
    model = CrossEncoder(str(folder), max_length=length, backend="onnx", model_kwargs={"export": True})
    model.save_pretrained(str(folder))
    if optimised:
        export_optimized_onnx_model(model, optimised, str(folder))
        file = f"onnx/model_{optimised}.onnx"
    if quantised:
        model = CrossEncoder(str(folder), max_length=length, backend="onnx", model_kwargs={"file_name": file})
        export_dynamic_quantized_onnx_model(model, quantised, str(folder))
        file = next(str(path.relative_to(folder)) for path in folder.glob("onnx/*qint8*.onnx"))
    return CrossEncoder(str(folder), max_length=length, backend="onnx", model_kwargs={"file_name": file})


def on_openvino(precision: str) -> Callable[[Path, int], CrossEncoder]:
    """Return the function that loads the checkpoint for OpenVINO."""
    options = {"export": True, "ov_config": {"INFERENCE_PRECISION_HINT": precision}}
    return lambda folder, length: CrossEncoder(
        str(folder), max_length=length, backend="openvino", model_kwargs=dict(options)
    )


ENGINES: dict[str, Callable[[Path, int], CrossEncoder]] = {
    "torch-fp32": on_torch(torch.float32),
    "torch-bf16": on_torch(torch.bfloat16),
    "onnx": on_onnx,
    "onnx-O3": lambda folder, length: on_onnx(folder, length, optimised="O3"),
    "onnx-int8": lambda folder, length: on_onnx(folder, length, quantised="avx512_vnni"),
    "onnx-O3-int8": lambda folder, length: on_onnx(folder, length, optimised="O3", quantised="avx512_vnni"),
    "openvino-fp32": on_openvino("f32"),
    "openvino-bf16": on_openvino("bf16"),
}


def main(folder: Path, engine: str) -> None:
    """Load one engine, choose its batch size and answer with rounds."""
    task: dict[str, Any] = json.loads((folder / "pairs.json").read_text(encoding="utf-8"))
    pairs = [(query, document) for query, document in task["pairs"]]
    own = shutil.copytree(folder / "base", folder / f"base-{engine}")  # engines add files to it
    model = ENGINES[engine](own, task["max_length"])

    def score(some: list[tuple[str, str]], size: int) -> np.ndarray:
        return model.predict(some, batch_size=size, activation_fn=torch.nn.Identity(), show_progress_bar=False)

    def timed(some: list[tuple[str, str]], size: int) -> dict[str, float]:
        started, used = time.perf_counter(), time.process_time()
        score(some, size)
        return {"seconds": time.perf_counter() - started, "cpu": time.process_time() - used}

    probe = pairs[:: -(-len(pairs) // PROBE_PAIRS)]
    for size in BATCH_SIZES:
        timed(probe, size)  # warm-up
    size = min(BATCH_SIZES, key=lambda size: timed(probe, size)["seconds"])
    print(json.dumps({"batch_size": size}), flush=True)
    for _ in sys.stdin:
        print(json.dumps(timed(pairs, size)), flush=True)
    np.save(folder / f"scores-{engine}.npy", np.asarray(score(pairs, size), dtype=np.float32))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
