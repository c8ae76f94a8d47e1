"""GatedMLP in numpy and float64, as the paper writes it."""

from __future__ import annotations

import math

import numpy as np

from onnxfuse.custom_ops.int8 import matrix

_erf = np.vectorize(math.erf, otypes=[np.float64])

ACTIVATIONS = {
    "silu": lambda z: z / (1 + np.exp(-z)),
    "gelu": lambda z: z * (1 + _erf(z / math.sqrt(2))) / 2,
    "gelu_tanh": lambda z: z * (1 + np.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))) / 2,
}


def reference(
    x: np.ndarray,
    gate_weight: np.ndarray,
    up_weight: np.ndarray,
    down_weight: np.ndarray,
    gate_bias: np.ndarray | None = None,
    up_bias: np.ndarray | None = None,
    down_bias: np.ndarray | None = None,
    skip: np.ndarray | None = None,
    norm_weight: np.ndarray | None = None,
    gate_scale: np.ndarray | None = None,
    up_scale: np.ndarray | None = None,
    down_scale: np.ndarray | None = None,
    *,
    activation: str,
    epsilon: float = 0.0,
) -> tuple[np.ndarray, ...]:
    """y of GatedMLP: `x: [..., H]`, weights [K, N] or packed [N/32, K, 32], any floating-point dtype, or int8 with
    scales; y float64.

    With `skip: [..., H]` also x + skip, rounded to x's dtype.
    """

    def project(value: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, scale: np.ndarray | None) -> np.ndarray:
        return value @ matrix(weight, scale) + (0 if bias is None else bias.astype(np.float64))

    h = x.astype(np.float64)
    if skip is not None:
        h = (h + skip.astype(np.float64)).astype(x.dtype).astype(np.float64)
    total = h
    if norm_weight is not None:
        mean_square = np.mean(h * h, axis=-1, keepdims=True)
        h = h / np.sqrt(mean_square + np.float32(epsilon)) * norm_weight.astype(np.float64)
    gate = ACTIVATIONS[activation](project(h, gate_weight, gate_bias, gate_scale))
    y = project(gate * project(h, up_weight, up_bias, up_scale), down_weight, down_bias, down_scale)
    return (y,) if skip is None else (y, total)
