"""RotaryTable in standard ONNX operators."""

from __future__ import annotations

import onnx_ir as ir
from onnxfuse.custom_ops.body import Body


def function(op: Body, position_ids: ir.Value, inv_freq: ir.Value) -> dict[str, ir.Value]:
    """cos = cos(position * inv_freq) * scale; sin likewise"""
    position = op.Unsqueeze(op.Cast(position_ids, to=ir.DataType.FLOAT), op.constant([-1]))
    angle = op.Mul(position, inv_freq)
    scale = op.attribute("scale")
    return {"cos": op.Mul(op.Cos(angle), scale), "sin": op.Mul(op.Sin(angle), scale)}
