"""RotaryTable in numpy: the angle in float32, as graphs compute it, its cos and sin in float64."""

from __future__ import annotations

import numpy as np


def reference(position_ids: np.ndarray, inv_freq: np.ndarray, *, scale: float = 1.0) -> tuple[np.ndarray, ...]:
    """cos and sin: `position_ids: [B, S] int64`, `inv_freq: [F] float32`; `cos, sin: [B, S, F] float64`."""
    angle = (position_ids.astype(np.float32)[..., None] * inv_freq).astype(np.float64)
    return np.cos(angle) * np.float32(scale), np.sin(angle) * np.float32(scale)
