"""Comparing arrays: which values count, and how far apart two of them are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxfuse.operators import dtype_name
from onnxfuse.verify.feeds import visible
from onnxfuse.verify.interface import Point

# Largest relative difference accepted between two whole models. A unit roundoff is 2^-11 in float16 and 2^-8 in
# bfloat16; a rewritten layer moves some ten of them, and errors of L layers add up like sqrt(L) to L: room for 80.
# float32 would then get 5e-6, but a network multiplies an error by what its norms and softmaxes amplify, seen up to
# 1e-4 on exported models: ten times that, with the same margin that ONNX Runtime's own optimisations need.
# A model that rounds activations to 8 bits as it runs turns the last bit of a float into a step of 2^-8.
TOLERANCES = {"float64": 2e-3, "float32": 2e-3, "float16": 4e-2, "bfloat16": 0.3, "int8": 0.3}


def coarsest_arithmetic(model: ir.Model) -> str:
    """The key of `TOLERANCES` for the least exact numbers that `model` computes with, whatever its outputs are."""
    nodes = list(ir.traversal.RecursiveGraphIterator(model.graph))
    if any(_rounds_activations(node) for node in nodes):
        return "int8"
    weights = (value for graph in model.graphs() for value in graph.initializers.values())
    held = [value.const_value.dtype for value in weights if value.const_value is not None]
    held += [value.dtype for value in (*model.graph.inputs, *model.graph.outputs)]
    held += [node.attributes.get_int("to") for node in nodes if node.op_type == "Cast"]
    found = next((dtype for dtype in (ir.DataType.BFLOAT16, ir.DataType.FLOAT16) if dtype in held), ir.DataType.FLOAT)
    return dtype_name(found)


def _rounds_activations(node: ir.Node) -> bool:
    if node.op_type == "MatMulNBits":
        return node.attributes.get_int("accuracy_level", 0) == 4
    return node.op_type in ("QuantizeLinear", "DynamicQuantizeLinear", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM")


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
