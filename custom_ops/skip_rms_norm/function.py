"""SkipRMSNorm in standard ONNX operators."""

from __future__ import annotations

import onnx_ir as ir

from onnxfuse.custom_ops.body import Body


def function(op: Body, x: ir.Value, skip: ir.Value, weight: ir.Value) -> dict[str, ir.Value]:
    """sum = x + skip; y = sum / sqrt(mean(sum^2) + epsilon) * weight"""
    total = op.rounded(op.Add(op.float32(x), op.float32(skip)), like=x)
    h = op.widened(total, like=x)
    mean_square = op.reduce("ReduceMean", op.Mul(h, h), axis=-1)
    rms = op.Sqrt(op.Add(mean_square, op.attribute("epsilon")))
    return {"y": op.rounded(op.Mul(op.Div(h, rms), op.float32(weight)), like=x), "sum": total}
