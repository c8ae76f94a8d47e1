"""RMSNorm in numpy and float64, as the paper writes it."""

from __future__ import annotations

import numpy as np


def reference(x: np.ndarray, weight: np.ndarray, *, epsilon: float) -> tuple[np.ndarray, ...]:
    """y of RMSNorm: `x: [..., D]`, `weight: [D]`, any floating-point dtype; `y: [..., D] float64`."""
    x, weight = x.astype(np.float64), weight.astype(np.float64)
    return (x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + np.float32(epsilon)) * weight,)
