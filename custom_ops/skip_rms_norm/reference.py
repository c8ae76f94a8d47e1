"""SkipRMSNorm in numpy and float64."""

from __future__ import annotations

import numpy as np


def reference(x: np.ndarray, skip: np.ndarray, weight: np.ndarray, *, epsilon: float) -> tuple[np.ndarray, ...]:
    """y and sum: `x, skip: [..., D]`, `weight: [D]`; the sum is rounded to x's dtype before it is normalised."""
    total = (x.astype(np.float64) + skip.astype(np.float64)).astype(x.dtype).astype(np.float64)
    mean_square = np.mean(total * total, axis=-1, keepdims=True)
    return total / np.sqrt(mean_square + np.float32(epsilon)) * weight.astype(np.float64), total
