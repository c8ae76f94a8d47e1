"""Weights of 8 bits: integers with one scale for 32 rows of a column, in panels of 32 columns.

For W: [K, N], K and N multiples of 32:

    W[4 r + i, 32 p + j] = numbers[p, r, j, i] * scales[p, r / 8, j]    numbers: [N/32, K/4, 32, 4] int8
                                                                        scales: [N/32, K/32, 32] bfloat16

Four rows of a column lie side by side, as the processors' instructions for sums of products of bytes take them. In ONNX
operators it is undone by Reshape([N/32, K/32, 8, 32, 4]), the product with scales, Transpose(perm=[1, 2, 4, 0, 3]) and
Flatten(axis=3). A weight takes 8.5 bits.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np

from onnxfuse.custom_ops.packing import PANEL, unpack

SCALED_ROWS = 32  # that share the scales of their columns


def has_int8(shape: tuple[int, ...]) -> bool:
    """Whether a weight of this shape has this form: two dimensions, both multiples of 32."""
    return len(shape) == 2 and shape[0] % SCALED_ROWS == 0 and shape[1] % PANEL == 0


def numbers_shape(shape: tuple[int, int]) -> tuple[int, int, int, int]:
    """The shape of the integers of a weight [K, N]."""
    return shape[1] // PANEL, shape[0] // 4, PANEL, 4


def scales_shape(shape: tuple[int, int]) -> tuple[int, int, int]:
    """The shape of the scales of a weight [K, N]."""
    return shape[1] // PANEL, shape[0] // SCALED_ROWS, PANEL


def scales_of(weight: np.ndarray) -> np.ndarray:
    """The scales of `weight`: [K, N] finite numbers; of 32 numbers the largest becomes 127.

    scale = bfloat16(max |W| / 127), so that an integer is at most 127.25 before it is rounded.
    """
    blocks = weight.reshape(-1, SCALED_ROWS, weight.shape[1] // PANEL, PANEL)
    largest = np.maximum(blocks.max(axis=1), -blocks.min(axis=1)).swapaxes(0, 1)
    return np.ascontiguousarray(largest.astype(np.float32) / np.float32(127)).astype(ml_dtypes.bfloat16)


def numbers_of(weight: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """The integers of `weight`: [K, N] next to W / scale; |W - number * scale| <= scale / 2.

    Parameters
    ----------
    scales
        As `scales_of` gives them; a scale of 0 belongs to zeros, or to numbers too small for it.
    """
    divisors = scales.astype(np.float32)
    divisors[divisors == 0] = np.inf
    panels = weight.shape[1] // PANEL
    numbers = weight.reshape(-1, SCALED_ROWS, panels, PANEL) / divisors.swapaxes(0, 1)[:, None]
    numbers = np.clip(np.rint(numbers, out=numbers), -127, 127, out=numbers).astype(np.int8)
    return np.ascontiguousarray(numbers.reshape(-1, 4, panels, PANEL).transpose(2, 0, 3, 1))


def matrix(weight: np.ndarray, scales: np.ndarray | None = None) -> np.ndarray:
    """What a kernel multiplies by, in float64: a weight [K, N] in any of its forms, with its scales if it is int8."""
    wide = weight.astype(np.float64)
    if scales is None:
        return unpack(wide) if wide.ndim == 3 else wide
    blocks = wide.reshape(len(wide), -1, SCALED_ROWS // 4, PANEL, 4) * scales.astype(np.float64)[:, :, None, :, None]
    return blocks.transpose(1, 2, 4, 0, 3).reshape(4 * wide.shape[1], -1)
