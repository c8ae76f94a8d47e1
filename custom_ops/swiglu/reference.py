"""SwiGLU in numpy and float64."""

from __future__ import annotations

import numpy as np


def reference(gate: np.ndarray, up: np.ndarray) -> tuple[np.ndarray, ...]:
    """y of SwiGLU: `gate, up: [...]`, any floating-point dtype; `y: [...] float64`."""
    gate, up = gate.astype(np.float64), up.astype(np.float64)
    return (gate / (1 + np.exp(-gate)) * up,)
