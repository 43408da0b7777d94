"""A graph with 8-bit integers instead of float32 weights (dynamic quantisation).

Matrices are quantised for each column, and activations for each batch while the graph runs. Weights have 7 bits: with 8
the sums of two products overflow 16 bits on CPUs without VNNI, where the file may run although its gate was passed on
another one. Embedding tables have a scale for each row. The layer of the logit stays float32, or scores would tie.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np

SMALLEST_TABLE = 1 << 16  # numbers: smaller tables save nothing


def quantize(source: Path, target: Path) -> None:
    """Write the graph of `source` with int8 weights; exceptions of ONNX Runtime are not caught."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    external = source.with_name(f"{source.name}_data").exists()
    root, level = logging.getLogger(), logging.getLogger().level
    root.setLevel(logging.ERROR)  # it recommends a preparation of the graph, which dynamic quantisation does not need
    try:
        quantize_dynamic(
            source,
            target,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
            use_external_data_format=external,
        )
    finally:
        root.setLevel(level)
    _quantize_tables(target, external)


def _quantize_tables(path: Path, external: bool) -> None:
    """Replace the large embedding tables of a graph by int8 tables with a scale for each row."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load(str(path))
    graph: Any = model.graph
    shared = {name for node in graph.node if node.op_type != "Gather" for name in node.input}
    tables = {one.name: one for one in graph.initializer if one.name not in shared}
    lookups = [node for node in graph.node if node.op_type == "Gather" and _is_table(tables.get(node.input[0]))]
    done: set[str] = set()
    for node in lookups:
        name = node.input[0]
        if name not in done:
            done.add(name)
            numbers = numpy_helper.to_array(tables[name])
            scale = np.abs(numbers).max(axis=1, keepdims=True) / 127
            rounded = np.round(numbers / np.where(scale > 0, scale, 1)).astype(np.int8)
            graph.initializer.append(numpy_helper.from_array(rounded, f"{name}_int8"))
            graph.initializer.append(numpy_helper.from_array(scale.astype(np.float32), f"{name}_scale"))
            graph.initializer.remove(tables[name])
        position = list(graph.node).index(node)
        graph.node.remove(node)
        for offset, replacement in enumerate(_lookup(name, node.input[1], node.output[0])):
            graph.node.insert(position + offset, replacement)
    location = {"save_as_external_data": True, "location": f"{path.name}_data"} if external else {}
    onnx.save_model(model, str(path), **location)
    path.with_name(f"{path.name}.data").unlink(missing_ok=True)  # ONNX Runtime's, of the weights before


def _is_table(tensor: Any) -> bool:
    """Return whether an initializer is a large table (rows, width) of float32."""
    return (
        tensor is not None and tensor.data_type == 1 and len(tensor.dims) == 2 and np.prod(tensor.dims) > SMALLEST_TABLE
    )


def _lookup(table: str, ids: str, output: str) -> list[Any]:
    """Return the nodes that look up rows of an int8 table and multiply them by their scales."""
    from onnx import TensorProto, helper

    return [
        helper.make_node("Gather", [f"{table}_int8", ids], [f"{output}_int8"]),
        helper.make_node("Cast", [f"{output}_int8"], [f"{output}_float"], to=TensorProto.FLOAT),
        helper.make_node("Gather", [f"{table}_scale", ids], [f"{output}_scale"]),
        helper.make_node("Mul", [f"{output}_float", f"{output}_scale"], [output]),
    ]
