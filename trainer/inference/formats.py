"""The formats of a model folder besides safetensors: how each is written, and the record of those that passed.

A folder lists in `onnx/formats.json` the formats that passed their gate when it was exported, with what was measured;
only these are opened. Other graphs in a folder are not known to give the model's scores.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Literal, get_args

from torch import nn

from trainer.inference.gate import Quality
from trainer.inference.graph import Batch, write_graph
from trainer.inference.quantize import quantize
from trainer.runtime.run_folder import read_record, write_json

Format = Literal["onnx", "onnx-fused", "onnx-int8"]
FORMATS: tuple[Format, ...] = get_args(Format)
EXACT: tuple[Format, ...] = ("onnx", "onnx-fused")  # formats that differ from the float32 model by rounding only
FILES: dict[Format, Path] = {
    "onnx": Path("onnx") / "model.onnx",
    "onnx-fused": Path("onnx") / "model_fused.onnx",
    "onnx-int8": Path("onnx") / "model_int8.onnx",  # the name that transformers.js reads
}
RECORD = Path("onnx") / "formats.json"
TRACED = 2  # pairs


def write(name: Format, model: nn.Module, batch: Batch, folder: Path, float32_share: float = 0.0) -> None:
    """Write a format of a float32 model on the CPU to its file in a folder; exceptions are not caught.

    `batch` are padded pairs as the model will score: the graph is traced with two of them, int8 rests on all. In int8 a
    share of the products, those that lose most, can stay float32.
    """
    path = folder / FILES[name]
    example = {key: rows[:TRACED] for key, rows in batch.items()}
    if name in EXACT:
        write_graph(model, example, path, fused=name == "onnx-fused")
        return
    exact = path.with_name(f".{path.name}")
    try:
        write_graph(model, example, exact, fused=True)
        quantize(exact, path, batch, float32_share)
    finally:
        for part in files(exact):
            part.unlink(missing_ok=True)


def remove(name: Format, folder: Path) -> None:
    """Delete the files of a format from a folder, and the folder of all formats if it is empty then."""
    for path in files(folder / FILES[name]):
        path.unlink(missing_ok=True)
    inside = (folder / FILES[name]).parent
    if inside.is_dir() and not any(inside.iterdir()):
        inside.rmdir()


def files(path: Path) -> list[Path]:
    """Return the paths that a graph may consist of: the graph, and the weights if they are in a file of their own."""
    return [path, path.with_name(f"{path.name}_data")]


def size(name: Format, folder: Path) -> int:
    """Return the bytes of a format's files."""
    return sum(path.stat().st_size for path in files(folder / FILES[name]) if path.is_file())


def record(qualities: Mapping[Format, Quality], folder: Path) -> None:
    """Write the formats that passed their gate to the folder's record."""
    write_json(folder / RECORD, {name: asdict(quality) for name, quality in qualities.items()})


def passed(folder: Path) -> list[Format]:
    """Return the formats of a folder that passed their gate when it was exported."""
    known = read_record(folder / RECORD) or {}
    return [name for name in FORMATS if name in known]
