"""A graph with 8-bit integers instead of float32 weights.

Each product of activations and a constant matrix is one of integers (`rounding` says how they are made); activations
are quantised while the graph runs. Embedding tables have a scale for each row. The layer of the logit stays float32, or
scores would tie.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from trainer.inference.rounding import LARGEST, LEVELS, TINY, Activations, Rounding
from trainer.inference.session import Session
from trainer.runtime.numbers import evenly

SMALLEST_TABLE = 1 << 16  # numbers: smaller tables save nothing
WITH_TOKENS = 3  # dimensions: one state for a pair, as in pooled layers, stays float32
SAMPLED = 8  # tokens of a pair that the zero points and the errors rest on
ONNX_RUNTIME = "com.microsoft"  # domain of its own operators


def quantize(source: Path, target: Path, batch: Mapping[str, Tensor], float32_share: float = 0.0) -> None:
    """Write the graph of `source` in int8; `batch` (pairs, length) are padded pairs that the rounding rests on.

    A share of the inputs of products, those where rounding costs most, can stay float32. Exceptions of ONNX Runtime
    are not caught.
    """
    import onnx

    external = source.with_name(f"{source.name}_data").exists()
    model = onnx.load(str(source))
    graph: Any = model.graph
    constants, tables, products = _Constants(graph), _tables(graph), _products(graph)
    inputs = _inputs(products, constants, _activations(source, list(products), batch), float32_share)
    nodes: list[Any] = []
    for node in graph.node:
        name = node.input[0] if node.input else ""
        if node.op_type == "Gather" and name in tables:
            nodes += _lookup(node, constants)
        elif node.op_type == "MatMul" and name in inputs and node.input[1] in products[name]:
            nodes += inputs[name].product(node, constants)
        else:
            nodes.append(node)
    constants.keep_used(nodes)
    del graph.node[:]
    graph.node.extend(nodes)
    if all(one.domain != ONNX_RUNTIME for one in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid(ONNX_RUNTIME, 1))
    location = {"save_as_external_data": True, "location": f"{target.name}_data"} if external else {}
    onnx.save_model(model, str(target), **location)


class _Constants:
    """The constants of a graph by name, and those that are added to it."""

    def __init__(self, graph: Any) -> None:
        self._initializers = graph.initializer
        self._known = {one.name: one for one in graph.initializer}

    def array(self, name: str) -> np.ndarray:
        """Return a constant."""
        from onnx import numpy_helper

        return numpy_helper.to_array(self._known[name])

    def add(self, name: str, value: np.ndarray) -> str:
        """Add a constant if its name is new; return the name."""
        from onnx import numpy_helper

        if name not in self._known:
            self._initializers.append(numpy_helper.from_array(np.asarray(value), name))
            self._known[name] = self._initializers[-1]
        return name

    def number(self, value: float, kind: type[np.generic] = np.float32) -> str:
        """Add a single number; return its name."""
        return self.add(f"int8_{kind.__name__}_{value}", np.asarray(value, dtype=kind))

    def shape(self, *sizes: int) -> str:
        """Add a shape, where 0 keeps a size; return its name."""
        return self.add(f"int8_shape_{'_'.join(map(str, sizes))}", np.asarray(sizes, dtype=np.int64))

    def keep_used(self, nodes: Sequence[Any]) -> None:
        """Delete the constants that no node reads."""
        used = {name for node in nodes for name in node.input}
        for one in [one for one in self._initializers if one.name not in used]:
            self._initializers.remove(one)


class _Input:
    """Activations (pairs, length, inputs) that one or more products read, quantised once for all of them."""

    def __init__(self, name: str, rounding: Rounding) -> None:
        self.name = name
        self.rounding = rounding
        self.integers = [f"{name}_int8_{group}" for group in range(rounding.groups)]
        self.steps = [f"{name}_step_{group}" for group in range(rounding.groups)]
        self.is_quantised = False

    def product(self, node: Any, constants: _Constants) -> list[Any]:
        """Return the nodes that replace a product of these activations with a matrix."""
        from onnx import helper

        nodes = [] if self.is_quantised else self._quantised(constants)
        self.is_quantised = True
        (output,), summands = node.output, []
        for group, (integers, scale) in enumerate(self.rounding.parts(constants.array(node.input[1]))):
            operands = [
                self.integers[group],
                constants.add(f"{output}_matrix_{group}", integers),
                constants.number(1),
                constants.add(f"{output}_columns_{group}", scale),
                constants.number(self.rounding.zero, np.uint8),
            ]
            product, summand = f"{output}_product_{group}", f"{output}_summand_{group}"
            nodes.append(helper.make_node("MatMulIntegerToFloat", operands, [product], domain=ONNX_RUNTIME))
            nodes.append(helper.make_node("Mul", [product, self.steps[group]], [summand]))
            summands.append(summand)
        if len(summands) == 1:  # a sum of one would copy it
            nodes[-1].output[0] = output
            return nodes
        return [*nodes, helper.make_node("Sum", summands, [output])]

    def _quantised(self, constants: _Constants) -> list[Any]:
        """Return the nodes that divide by the factors, and quantise each group of each token by its range."""
        from onnx import helper

        nodes: list[Any] = []

        def made(operator: str, inputs: Sequence[str], outputs: str | list[str], **attributes: Any) -> str:
            names = [f"{self.name}_{outputs}"] if isinstance(outputs, str) else outputs
            nodes.append(helper.make_node(operator, list(inputs), names, **attributes))
            return names[0]

        groups, zero = self.rounding.groups, self.rounding.zero
        factors = constants.add(f"{self.name}_factors", 1 / self.rounding.factors)
        numbers = made("Mul", [self.name, factors], "smooth")
        if groups > 1:
            numbers = made("Reshape", [numbers, constants.shape(0, 0, groups, -1)], "grouped")
        largest = made("ReduceMax", [numbers], "largest", axes=[-1], keepdims=1)
        smallest = made("ReduceMin", [numbers], "smallest", axes=[-1], keepdims=1)
        above = made("Mul", [largest, constants.number(1 / (LARGEST - zero))], "above")
        below = made("Mul", [smallest, constants.number(-1 / zero)], "below")
        operands = [above, below, constants.number(TINY)]
        step = made("Max", operands, self.steps if groups == 1 else "step")
        divided = made("Mul", [numbers, made("Reciprocal", [step], "per_step")], "divided")
        operands = [divided, constants.number(1), constants.number(zero, np.uint8)]
        integers = made("QuantizeLinear", operands, self.integers if groups == 1 else "int8")
        if groups > 1:
            flat = made("Reshape", [integers, constants.shape(0, 0, len(self.rounding.factors))], "flat")
            steps = made("Reshape", [step, constants.shape(0, 0, groups)], "steps")
            made("Split", [flat], self.integers, axis=-1)
            made("Split", [steps], self.steps, axis=-1)
        return nodes


def _products(graph: Any) -> dict[str, list[str]]:
    """Return the names of constant matrices (inputs, outputs) of float32 by the activations that they multiply."""
    matrices = {one.name for one in graph.initializer if one.data_type == 1 and len(one.dims) == 2}
    found: dict[str, list[str]] = {}
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in matrices and node.input[0] not in matrices:
            found.setdefault(node.input[0], []).append(node.input[1])
    return found


def _inputs(
    products: Mapping[str, Sequence[str]],
    constants: _Constants,
    activations: Mapping[str, Activations],
    float32_share: float,
) -> dict[str, _Input]:
    """Return the inputs of products that are quantised, which are those with the smallest errors."""
    inputs, errors = {}, {}
    for name, measured in activations.items():
        matrix = np.concatenate([constants.array(one) for one in products[name]], axis=1)
        inputs[name] = _Input(name, Rounding(measured, matrix))
        if float32_share:
            errors[name] = inputs[name].rounding.error(measured.sampled, matrix)
    for name in sorted(errors, key=errors.__getitem__, reverse=True)[: round(len(inputs) * float32_share)]:
        del inputs[name]
    return inputs


def _activations(source: Path, names: Sequence[str], batch: Mapping[str, Tensor]) -> dict[str, Activations]:
    """Return what a graph computes under each name in a batch without its padding, if it is (pairs, length, inputs)."""
    import onnx
    from onnx import TensorProto, helper

    if not names:
        return {}
    path = source.with_name(f".{source.name}.activations")
    model = onnx.load(str(source), load_external_data=False)
    model.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    try:
        onnx.save_model(model, str(path))
        session = Session(path)
    finally:
        path.unlink(missing_ok=True)
    found: dict[str, list[Activations]] = {name: [] for name in names}
    for index, real in enumerate(batch["attention_mask"].bool()):
        pair = {name: rows[index : index + 1, real] for name, rows in batch.items()}
        for name, values in zip(names, session.outputs(names, pair), strict=True):
            if values.ndim != WITH_TOKENS:
                continue
            rows = values.reshape(-1, values.shape[-1])
            some = rows[evenly(len(rows), SAMPLED)]
            found[name].append(Activations(np.abs(rows).max(axis=0), some))
    return {name: _joined(parts) for name, parts in found.items() if parts}


def _joined(parts: Sequence[Activations]) -> Activations:
    largest = np.max([one.largest for one in parts], axis=0)
    return Activations(largest, np.concatenate([one.sampled for one in parts]))


def _tables(graph: Any) -> set[str]:
    """Return the large tables (rows, width) of float32 that only lookups read."""
    shared = {name for node in graph.node for place, name in enumerate(node.input) if node.op_type != "Gather" or place}
    return {
        one.name
        for one in graph.initializer
        if one.name not in shared and one.data_type == 1 and len(one.dims) == 2 and np.prod(one.dims) > SMALLEST_TABLE
    }


def _lookup(node: Any, constants: _Constants) -> list[Any]:
    """Return the nodes that look up rows of an int8 table and multiply them by their scales."""
    from onnx import TensorProto, helper

    (table, ids), (output,) = node.input, node.output
    numbers = constants.array(table)
    scale = np.maximum(np.abs(numbers).max(axis=1, keepdims=True) / LEVELS, TINY).astype(np.float32)
    integers = constants.add(f"{table}_int8", np.round(numbers / scale).astype(np.int8))
    scales = constants.add(f"{table}_scale", scale)
    return [
        helper.make_node("Gather", [integers, ids], [f"{output}_int8"]),
        helper.make_node("Cast", [f"{output}_int8"], [f"{output}_float"], to=TensorProto.FLOAT),
        helper.make_node("Gather", [scales, ids], [f"{output}_scale"]),
        helper.make_node("Mul", [f"{output}_float", f"{output}_scale"], [output]),
    ]
