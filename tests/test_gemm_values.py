"""Matrix products of numbers that are no ordinary ones: infinite, NaN of any payload, the largest."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

import onnxfuse
from onnxfuse.custom_ops import int8
from onnxfuse.custom_ops.case import DTYPES, Case, feed, single_node_model, widen_edges

K, N = 48, 32
ALL_ONES = 0x7FFFFFFF  # a NaN that rounding its bits as those of a number would turn into zero


INPUTS = ("x", "skip", "norm_weight", "weight_0", "bias_0", "weight_1", "bias_1", "weight_2", "bias_2", "scale_0")


def product(x: np.ndarray, weight: np.ndarray, scale: np.ndarray | None = None) -> np.ndarray:
    """x @ weight by the kernel of Linear."""
    given = dict.fromkeys(INPUTS) | {"x": x, "weight_0": weight, "scale_0": scale}
    case = Case("values", given, {"y_0": str(x.dtype)})
    model = single_node_model("Linear", case, 18)
    widen_edges(model)
    return onnxfuse.session(model).run(None, feed(case))[0]


@pytest.mark.parametrize("weights", ["float32", "bfloat16"])
@pytest.mark.parametrize("rows", [1, 3, 16, 40])
def test_infinite_and_undefined_activations(rows: int, weights: str) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, K), dtype=np.float32)
    weight = np.asarray(rng.uniform(0.5, 1, (K, N)) * rng.choice([-1, 1], (K, N)), DTYPES[weights])
    plain = product(x, weight)
    x[0, 5] = np.inf
    found = product(x, weight)
    if weights == "float32" and rows >= 12:  # AMX multiplies by all parts of a weight, and a part may be zero: NaN
        assert not np.isfinite(found[0]).any()
    else:
        np.testing.assert_array_equal(found[0], np.inf * weight[5].astype(np.float32))
    np.testing.assert_array_equal(found[1:], plain[1:])
    x[0, 5] = np.array(ALL_ONES, np.uint32).view(np.float32)
    found = product(x, weight)
    assert np.isnan(found[0]).all()
    np.testing.assert_array_equal(found[1:], plain[1:])


@pytest.mark.parametrize("rows", [1, 3, 16, 40])
def test_infinite_and_undefined_weights_of_16_bits(rows: int) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, K), dtype=np.float32).astype(np.float16)
    weight = rng.standard_normal((K, N), dtype=np.float32).astype(np.float16)
    weight[7, 3] = np.array(0x7FFF, np.uint16).view(np.float16)
    weight[9, 4] = np.inf
    found = product(x, weight)
    assert np.isnan(found[:, 3]).all()
    assert not np.isfinite(found[:, 4]).any()
    assert np.isfinite(np.delete(found, [3, 4], axis=1)).all()


def rounds_activations(rows: int) -> bool:
    """Whether this processor takes activations beside bfloat16 weights in bfloat16: one with VDPBF16PS and no AMX."""
    info = Path("/proc/cpuinfo")
    flags = info.read_text().split() if info.exists() else []
    best = os.environ.get("ONNXFUSE_SIMD") in (None, "", "avx512_bf16")
    return best and "avx512_bf16" in flags and "amx_bf16" not in flags and rows >= 8


@pytest.mark.parametrize("rows", [1, 3, 7, 16, 40])
def test_activations_keep_16_bits_beside_bfloat16_weights(rows: int) -> None:
    """x = 1 + 2^-15 needs them; one bfloat16 leaves 1, and the sum of the differences nothing."""
    x = np.full((rows, K), 1 + 2.0**-15, np.float32)
    weight = np.asarray(np.where(np.arange(K)[:, None] % 2, -1, 1) * np.ones((1, N)), DTYPES["bfloat16"])
    weight[0] = 0
    # 24 times minus and 23 times plus 1 + 2^-15; what is left out is below 2^-16 of each of the 47 products
    kept = 0 if rounds_activations(rows) else 2.0**-15
    np.testing.assert_allclose(product(x, weight), -(1 + kept), rtol=0, atol=47 * 2.0**-17)
    x[:, 1::2] = 1
    np.testing.assert_allclose(product(x, weight), -24 + 23 * (1 + kept), rtol=0, atol=2.0**-17 * 23)


@pytest.mark.parametrize("rows", [1, 3, 16, 40])
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_infinite_and_undefined_activations_beside_int8_weights(rows: int, value: float) -> None:
    """They give no number; the other rows do not see them."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, 64), dtype=np.float32)
    w = rng.standard_normal((64, N), dtype=np.float32)
    numbers, scales = int8.numbers_of(w, int8.scales_of(w)), int8.scales_of(w)
    plain = product(x, numbers, scales)
    x[0, 5] = value
    found = product(x, numbers, scales)
    assert not np.isfinite(found[0][int8.matrix(numbers, scales)[5] != 0]).any()
    np.testing.assert_array_equal(found[1:], plain[1:])


@pytest.mark.parametrize("rows", [1, 3, 16, 40])
def test_the_largest_and_the_smallest_activations_beside_int8_weights(rows: int) -> None:
    """Of each 32 the largest number says how exact the others are, from subnormal numbers to the largest of all."""
    rng = np.random.default_rng(0)
    sizes = np.array([1e-42, 1e-38, 1e-20, 1, 1e20, 1e38], np.float32)
    w = rng.standard_normal((192, N), dtype=np.float32) / 192
    scales = int8.scales_of(w)
    numbers = int8.numbers_of(w, scales)
    x = rng.uniform(-1, 1, (rows, 6, 32)).astype(np.float32)
    for i, size in enumerate(sizes):
        alone = np.zeros_like(x)
        alone[:, i] = x[:, i] * size
        alone = alone.reshape(rows, 192)
        matrix, wide = int8.matrix(numbers, scales), alone.astype(np.float64)
        # Beside subnormal numbers, which AMX takes for zeros, nothing is exact. For many rows it rounds the weights.
        tolerance = 2.0**-15 * max(size, 2.0**-110)
        if rows > 32:
            tolerance = tolerance + 2.0**-8 * np.abs(wide) @ np.abs(matrix)
        assert (np.abs(product(alone, numbers, scales) - wide @ matrix) <= tolerance).all()


@pytest.mark.parametrize("rows", [1, 3, 16, 40])
def test_float32_keeps_24_bits(rows: int) -> None:
    """1 + 2^-23 needs them, in either factor; without the last one nothing would be left of the sums."""
    last = np.float32(2.0**-23)
    signs = np.where(np.arange(K) % 8 < 4, np.float32(1), np.float32(-1))
    numbers = np.where(signs > 0, 1 + last, np.float32(1))
    tolerance = 4 * last  # half a unit of partial sums of up to 4, for each of which the next ones make up
    found = product(np.tile(numbers, (rows, 1)), np.tile(signs[:, None], (1, N)))
    np.testing.assert_allclose(found, K / 2 * last, rtol=0, atol=tolerance)
    found = product(np.tile(signs, (rows, 1)), np.tile(numbers[:, None], (1, N)))
    np.testing.assert_allclose(found, K / 2 * last, rtol=0, atol=tolerance)


@pytest.mark.parametrize("rows", [1, 3, 16, 40])
def test_the_largest_numbers_are_finite(rows: int) -> None:
    """Rounded to bfloat16 they would be infinite."""
    largest = np.finfo(np.float32).max
    x, weight = np.zeros((rows, K), np.float32), np.zeros((K, N), np.float32)
    x[:, 7], weight[7] = largest, 2.0**-20
    x[:, 9], weight[9] = 2.0**-30, largest
    expected = float(largest) * (2.0**-20 + 2.0**-30)
    np.testing.assert_allclose(product(x, weight), expected, rtol=4 * 2.0**-24)  # two products and their sum


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh"])
def test_an_infinite_gate_is_active(activation: str) -> None:
    infinite, one = np.full((1, 1), np.inf, np.float32), np.ones((1, 1), np.float32)
    names = ("x", "gate_weight", "up_weight", "down_weight")
    given = dict(zip(names, (infinite, one, one, one), strict=True))
    case = Case("values", given, {"y": "float32"}, {"activation": activation})
    (y,) = onnxfuse.session(single_node_model("GatedMLP", case, 18)).run(None, feed(case))
    np.testing.assert_array_equal(y, infinite)
