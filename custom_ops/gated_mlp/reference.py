"""GatedMLP in numpy and float64, as the paper writes it."""

from __future__ import annotations

import math

import numpy as np

from onnxfuse.custom_ops.packing import unpack

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
    *,
    activation: str,
) -> tuple[np.ndarray, ...]:
    """y of GatedMLP: `x: [..., H]`, weights [K, N] or packed [N/32, K, 32], any floating-point dtype; y float64."""

    def project(value: np.ndarray, weight: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
        plain = unpack(weight) if weight.ndim == 3 else weight
        return value @ plain.astype(np.float64) + (0 if bias is None else bias.astype(np.float64))

    wide = x.astype(np.float64)
    gate = ACTIVATIONS[activation](project(wide, gate_weight, gate_bias))
    return (project(gate * project(wide, up_weight, up_bias), down_weight, down_bias),)
