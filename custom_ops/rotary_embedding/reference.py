"""RotaryEmbedding in numpy and float64."""

from __future__ import annotations

import numpy as np


def reference(
    x: np.ndarray, cos: np.ndarray, sin: np.ndarray, *, num_heads: int, interleaved: int = 0, rotary_dim: int = 0
) -> tuple[np.ndarray, ...]:
    """y: `x: [B, S, N*D]` or `[B, N, S, D]`, `cos, sin: [B|1, S, R|R/2]`; `y: like x, float64`."""
    h = x.astype(np.float64)
    if x.ndim == 3:
        h = h.reshape(*x.shape[:2], num_heads, x.shape[2] // num_heads).swapaxes(1, 2)
    r = rotary_dim or h.shape[-1]
    first = np.arange(0, r, 2) if interleaved else np.arange(r // 2)
    second = first + 1 if interleaved else first + r // 2
    c, s = (t.astype(np.float64)[:, None] for t in (cos, sin))
    entry_1, entry_2 = (first, second) if cos.shape[-1] == r else (np.arange(r // 2),) * 2
    y = h.copy()
    y[..., first] = h[..., first] * c[..., entry_1] - h[..., second] * s[..., entry_1]
    y[..., second] = h[..., second] * c[..., entry_2] + h[..., first] * s[..., entry_2]
    return (y.swapaxes(1, 2).reshape(x.shape) if x.ndim == 3 else y,)
