"""The layout in which the matrix-product kernels read weights: panels of 32 columns.

pack(W)[p, k, j] = W[k, 32 p + j] for W: [K, N] of any dtype, N a multiple of 32; the packed form is [N/32, K, 32].
A panel is one stream of memory, so a kernel that owns some panels reads them from first byte to last. The bytes are
those of W in another order: nothing is rounded, and `unpack(pack(W))` is W. In ONNX operators the inverse is
Transpose(perm=[1, 0, 2]) and Reshape([K, N]).
"""

from __future__ import annotations

import numpy as np

PANEL = 32  # columns of a panel


def is_packable(shape: tuple[int, ...]) -> bool:
    """Whether a weight of this shape has a packed form: two dimensions, the columns a multiple of 32."""
    return len(shape) == 2 and shape[1] % PANEL == 0


def packed_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """The shape of the packed form of a weight [K, N].

    Raises
    ------
    ValueError
        If the weight has no packed form.

    Examples
    --------
    >>> packed_shape((2048, 5632))
    (176, 2048, 32)
    """
    if not is_packable(shape):
        raise ValueError(f"a weight of shape {list(shape)} cannot be packed: expected [K, N], N a multiple of {PANEL}")
    return shape[1] // PANEL, shape[0], PANEL


def pack(weight: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """Packs `weight`: [K, N] into [N/32, K, 32] of the same dtype.

    Parameters
    ----------
    weight
        May be a memory map; it is read once, in bands of rows, so that few of its pages are resident at a time.
    out
        Where to write, for instance a memory map of the file that is being made; allocated if absent.

    Returns
    -------
    numpy.ndarray
        `out`, or a new C-contiguous array.

    Raises
    ------
    ValueError
        If the shape or `out` does not fit.
    """
    shape = packed_shape(weight.shape)
    if out is None:
        out = np.empty(shape, weight.dtype)
    elif out.shape != shape or out.dtype != weight.dtype:
        raise ValueError(f"out is {out.dtype}{list(out.shape)}, expected {weight.dtype}{list(shape)}")
    rows = max(1, (1 << 20) // max(1, weight.shape[1] * weight.itemsize))
    for k in range(0, weight.shape[0], rows):
        band = weight[k : k + rows]
        out[:, k : k + rows] = band.reshape(len(band), -1, PANEL).swapaxes(0, 1)
    return out


def unpack(panels: np.ndarray) -> np.ndarray:
    """The weight [K, N] whose packed form is `panels`: [N/32, K, 32].

    Raises
    ------
    ValueError
        If `panels` is not of that form.
    """
    if panels.ndim != 3 or panels.shape[2] != PANEL:
        raise ValueError(f"panels have shape {list(panels.shape)}, expected [N/{PANEL}, K, {PANEL}]")
    return np.ascontiguousarray(panels.swapaxes(0, 1)).reshape(panels.shape[1], -1)
