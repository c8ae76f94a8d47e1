"""RMSNorm in standard ONNX operators."""

from __future__ import annotations

import onnx_ir as ir

from onnxfuse.custom_ops.body import Body


def function(op: Body, x: ir.Value, weight: ir.Value) -> dict[str, ir.Value]:
    """y = x / sqrt(mean(x^2) + epsilon) * weight"""
    h = op.float32(x)
    mean_square = op.reduce("ReduceMean", op.Mul(h, h), axis=-1)
    rms = op.Sqrt(op.Add(mean_square, op.attribute("epsilon")))
    return {"y": op.rounded(op.Mul(op.Div(h, rms), op.float32(weight)), like=x)}
