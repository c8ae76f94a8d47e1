"""Comparing arrays: which values count, and how far apart two of them are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxfuse.verify.feeds import visible
from onnxfuse.verify.interface import Point

# Largest relative difference accepted between two whole models. A unit roundoff is 2^-11 in float16 and 2^-8 in
# bfloat16; a rewritten layer moves some ten of them, and errors of L layers add up like sqrt(L) to L: room for 80.
# float32 would then get 5e-6, but a network multiplies an error by what its norms and softmaxes amplify, seen up to
# 1e-4 on exported models: ten times that, with the same margin that ONNX Runtime's own optimisations need.
TOLERANCES = {"float64": 2e-3, "float32": 2e-3, "float16": 4e-2, "bfloat16": 0.3}
# A model that rounds activations to 8 bits as it runs turns the last bit of a float into a step of 2^-8.
QUANTISED_TOLERANCE = TOLERANCES["bfloat16"]


def rounds_activations(model: ir.Model) -> bool:
    """Whether `model` quantises activations to 8 bits while it runs."""
    return any(
        node.op_type in ("QuantizeLinear", "DynamicQuantizeLinear", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM")
        or (node.op_type == "MatMulNBits" and node.attributes.get_int("accuracy_level", 0) == 4)
        for node in ir.traversal.RecursiveGraphIterator(model.graph)
    )


@dataclass(frozen=True)
class Difference:
    """How far `actual` is from `reference`: see `difference`."""

    max_abs: float
    max_rel: float
    worst: tuple[int, ...]
    compared: int


def difference(reference: np.ndarray, actual: np.ndarray, counts: np.ndarray | None = None) -> Difference:
    """The largest difference where `counts` is true (everywhere without it).

    max_abs = max |a - r|;  max_rel = max |a - r| / max(|r|, rms(r)), so that values that cancel to almost nothing are
    measured against the size of their neighbours. Values that are infinite or NaN in `reference` must be the same in
    `actual`; otherwise both are infinite. Booleans and integers are compared as numbers.
    """
    if reference.shape != actual.shape:
        return Difference(np.inf, np.inf, (), 0)
    wanted, got = reference.astype(np.float64), actual.astype(np.float64)
    counts = np.ones(wanted.shape, bool) if counts is None else np.broadcast_to(counts, wanted.shape)
    if not counts.any():
        return Difference(0.0, 0.0, (), 0)
    finite = np.isfinite(wanted)
    same = (wanted == got) | (np.isnan(wanted) & np.isnan(got))
    considered = counts & finite
    scale = np.sqrt(np.mean(np.square(wanted[considered]))) if considered.any() else 0.0
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        absolute = np.where(same | ~counts, 0.0, np.abs(got - wanted))
        absolute = np.where(np.isnan(absolute) | (counts & ~finite & ~same), np.inf, absolute)
        relative = np.where(absolute == 0, 0.0, absolute / np.maximum(np.where(finite, np.abs(wanted), 0.0), scale))
    worst = np.unravel_index(int(np.argmax(relative)), relative.shape) if relative.size else ()
    return Difference(float(absolute.max()), float(relative.max()), tuple(int(i) for i in worst), int(counts.sum()))


def defined(shape: tuple[int, ...], point: Point, axis: int | None = None) -> np.ndarray | None:
    """Which values of an output of `shape` are defined at `point`; None: all.

    A padding token attends to nothing, and exporters differ in what they compute there: its hidden state, its logits
    and, from the second layer on, its key and value are undefined. The tokens are on `axis`; if that is not given, on
    axis 1 of [B, S, ...] and on axis 2 of [B, N, S or T, ...], or on axis 1 of that where only its size fits.
    """
    if point.padding == "none" or len(shape) < 2 or shape[0] != point.batch:
        return None
    places = [axis] if axis is not None else [2, 1] if len(shape) == 4 else [1]
    axis = next((place for place in places if shape[place] in (point.total, point.length)), None)
    if axis is None:
        return None
    keys = visible(point)
    rows = keys if shape[axis] == point.total else keys[:, point.past :]
    return rows.reshape([point.batch, *([1] * (axis - 1)), shape[axis], *([1] * (len(shape) - axis - 1))])
