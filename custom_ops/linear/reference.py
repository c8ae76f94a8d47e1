"""Linear in numpy and float64."""

from __future__ import annotations

import numpy as np

from onnxfuse.custom_ops.int8 import matrix


def reference(
    x: np.ndarray,
    skip: np.ndarray | None,
    norm_weight: np.ndarray | None,
    weight_0: np.ndarray,
    bias_0: np.ndarray | None,
    weight_1: np.ndarray | None,
    bias_1: np.ndarray | None,
    weight_2: np.ndarray | None,
    bias_2: np.ndarray | None,
    scale_0: np.ndarray | None = None,
    scale_1: np.ndarray | None = None,
    scale_2: np.ndarray | None = None,
    *,
    epsilon: float = 0.0,
) -> tuple[np.ndarray | None, ...]:
    """y_0, y_1, y_2 and sum in float64, None for those without an input; the sum is rounded to x's dtype first."""
    h = x.astype(np.float64)
    total = None
    if skip is not None:
        h = total = (h + skip.astype(np.float64)).astype(x.dtype).astype(np.float64)
    if norm_weight is not None:
        mean_square = np.mean(h * h, axis=-1, keepdims=True)
        h = h / np.sqrt(mean_square + np.float32(epsilon)) * norm_weight.astype(np.float64)

    def product(weight: np.ndarray | None, bias: np.ndarray | None, scale: np.ndarray | None) -> np.ndarray | None:
        if weight is None:
            return None
        return h @ matrix(weight, scale) + (0 if bias is None else bias.astype(np.float64))

    products = ((weight_0, bias_0, scale_0), (weight_1, bias_1, scale_1), (weight_2, bias_2, scale_2))
    return *(product(*of_one) for of_one in products), total
