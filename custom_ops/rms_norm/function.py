"""RMSNorm in standard ONNX operators."""

from __future__ import annotations

import onnx_ir as ir

from onnxfuse.custom_ops.body import Body


def function(op: Body, x: ir.Value, weight: ir.Value) -> dict[str, ir.Value]:
    """y = x / sqrt(mean(x^2) + epsilon) * weight"""
    return {"y": op.rounded(normalised(op, op.float32(x), weight), like=x)}


def normalised(op: Body, h: ir.Value, weight: ir.Value) -> ir.Value:
    """h / sqrt(mean(h^2) + epsilon) * weight, of a float32 h."""
    mean_square = op.reduce("ReduceMean", op.Mul(h, h), axis=-1)
    rms = op.Sqrt(op.Add(mean_square, op.attribute("epsilon")))
    return op.Mul(op.Div(h, rms), op.float32(weight))


def entering(
    op: Body, x: ir.Value, skip: ir.Value | None, norm_weight: ir.Value | None
) -> tuple[ir.Value, ir.Value | None]:
    """What enters a product behind a residual addition and a norm, in float32, and the sum, if there is one."""
    h, total = op.float32(x), None
    if skip is not None:
        total = op.rounded(op.Add(h, op.float32(skip)), like=x)
        h = op.widened(total, like=x)
    return (h if norm_weight is None else normalised(op, h, norm_weight)), total
