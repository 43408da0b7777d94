"""8-bit integers: what their products lose, and that no CPU overflows in them."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from trainer.inference import Session
from trainer.inference.quantize import quantize
from trainer.inference.rounding import Activations, Rounding, groups, rounded, smoothing, zero_point


def activations_of(rows: np.ndarray) -> Activations:
    return Activations(np.abs(rows).max(axis=0), rows)


def error_of(activations: Activations, matrix: np.ndarray) -> float:
    return Rounding(activations, matrix).error(activations.sampled, matrix)


@pytest.mark.parametrize("inputs", [1, 2, 7, 64, 385])
def test_neighbouring_weights_of_one_sign_fit_16_bits_and_each_is_within_half_a_step(inputs):
    rng = np.random.default_rng(inputs)
    for spread in (rng.normal(size=(inputs, 50)), rng.standard_t(2, size=(inputs, 50)), np.ones((inputs, 50))):
        matrix = spread.astype(np.float32)
        integers, scale = rounded(matrix)
        even = np.vstack([integers, np.zeros((inputs % 2, 50))]).astype(int)
        for sign in (1, -1):
            sums = np.maximum(sign * even[::2], 0) + np.maximum(sign * even[1::2], 0)
            assert 255 * sums.max() < 2**15
        assert (np.abs(integers * scale - matrix) <= scale * 0.5001).all()
        # 7 bits, the other way to fit, lose more: their steps are 1/63 of the largest weight.
        assert (scale <= np.abs(matrix).max(axis=0) / 63).all()


def test_columns_of_zeros_stay_zeros():
    integers, scale = rounded(np.zeros((4, 2), np.float32))
    assert not (integers * scale).any()
    assert np.isfinite(scale).all()


@pytest.mark.parametrize(("inputs", "count"), [(1, 1), (384, 1), (768, 2), (1152, 3), (1536, 4), (385, 5), (389, 1)])
def test_groups_are_equal_and_not_larger_than_allowed(inputs, count):
    assert groups(inputs) == count


def test_factors_move_large_channels_into_the_weights_and_silent_ones_stay_finite():
    largest, matrix = np.array([100.0, 1.0, 1.0, 0.0]), np.ones((4, 3), np.float32)
    factors = smoothing(largest, matrix)
    np.testing.assert_allclose(factors[0] / factors[1], 10, rtol=1e-5)
    np.testing.assert_allclose(np.exp(np.log(factors).mean()), 1, rtol=1e-5)
    np.testing.assert_array_equal(smoothing(np.zeros(4), np.zeros((4, 3))), np.ones(4))


def test_the_zero_point_follows_the_range():
    ones = np.ones(5)
    assert zero_point(-ones, ones) in (127, 128)
    assert zero_point(-0.17 * ones, 3 * ones) < 20
    assert zero_point(-3 * ones, 0.17 * ones) == 128
    assert zero_point(0 * ones, ones) == 16


def test_one_token_with_large_numbers_costs_the_others_nothing():
    rng = np.random.default_rng(0)
    rows, matrix = rng.normal(size=(64, 96)).astype(np.float32), rng.normal(size=(96, 32)).astype(np.float32)
    alone = error_of(activations_of(rows), matrix)
    assert alone < 0.02
    rows[0] *= 1000  # the whole token, so factors of channels do not help
    assert error_of(activations_of(rows), matrix) < 0.02


def test_factors_nearly_halve_the_error_where_a_channel_is_large():
    rng = np.random.default_rng(0)
    rows, matrix = rng.normal(size=(64, 96)).astype(np.float32), rng.normal(size=(96, 32)).astype(np.float32)
    rows[:, 5] *= 50
    matrix[5] /= 50  # as training leaves it: the channel is large and not more important
    quiet = Activations(np.ones(96, np.float32), rows)  # nothing known of the channels
    assert error_of(activations_of(rows), matrix) < 0.6 * error_of(quiet, matrix)


# The graph computes what these numbers say.


def graph_of(matrix: np.ndarray, path: Path) -> None:
    """A graph whose logit is the first of `states` times a matrix, summed over all tokens."""
    nodes = [
        helper.make_node("MatMul", ["states", "matrix"], ["product"]),
        helper.make_node("ReduceSum", ["product", "axes"], ["logits"], keepdims=0),
    ]
    constants = [numpy_helper.from_array(matrix, "matrix"), numpy_helper.from_array(np.array([2]), "axes")]
    graph = helper.make_graph(
        nodes,
        "product",
        [helper.make_tensor_value_info("states", TensorProto.FLOAT, ["pairs", "length", len(matrix)])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["pairs", "length"])],
        constants,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


@pytest.mark.parametrize("inputs", [32, 96, 768])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_activations_and_weights_do_not_overflow(inputs, sign, tmp_path):
    matrix = np.full((inputs, 24), 0.5, np.float32)
    states = torch.full((2, 3, inputs), sign * 4.0)
    graph_of(matrix, tmp_path / "exact.onnx")
    batch = {"states": states, "attention_mask": torch.ones(2, 3, dtype=torch.int64)}
    quantize(tmp_path / "exact.onnx", tmp_path / "int8.onnx", batch)
    assert "MatMulIntegerToFloat" in {node.op_type for node in onnx.load(tmp_path / "int8.onnx").graph.node}
    logits = Session(tmp_path / "int8.onnx").logits(batch).numpy()
    np.testing.assert_allclose(logits, sign * 4.0 * 0.5 * 24 * inputs, rtol=0.02)


def test_the_graph_loses_what_the_rounding_foresees(tmp_path):
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(768, 1)).astype(np.float32)
    states = np.maximum(rng.normal(size=(40, 1, 768)), -0.2).astype(np.float32) * rng.uniform(0.1, 9, size=(40, 1, 1))
    states = states.astype(np.float32)
    graph_of(matrix, tmp_path / "exact.onnx")
    batch = {"states": torch.from_numpy(states), "attention_mask": torch.ones(40, 1, dtype=torch.int64)}
    quantize(tmp_path / "exact.onnx", tmp_path / "int8.onnx", batch)
    logits, exact = Session(tmp_path / "int8.onnx").logits(batch).numpy(), (states @ matrix)[:, 0, 0]
    foreseen = error_of(activations_of(states[:, 0]), matrix)
    assert 0 < foreseen < 0.02
    np.testing.assert_allclose(np.linalg.norm(logits - exact) / np.linalg.norm(exact), foreseen, rtol=0.05)
