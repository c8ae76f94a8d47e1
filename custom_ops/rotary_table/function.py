"""RotaryTable in standard ONNX operators."""

from __future__ import annotations

import onnx_ir as ir

from onnxfuse.custom_ops.body import Body


def function(op: Body, position_ids: ir.Value, inv_freq: ir.Value) -> dict[str, ir.Value]:
    """cos = cos(position * inv_freq) * scale; sin likewise"""
    position = op.Unsqueeze(op.Cast(position_ids, to=ir.DataType.FLOAT), op.constant([-1]))
    angle = op.Mul(position, inv_freq)
    cos, sin = op.Cos(angle), op.Sin(angle)
    if op.given("scale"):
        scale = op.attribute("scale")
        cos, sin = op.Mul(cos, scale), op.Mul(sin, scale)
    return {"cos": cos, "sin": sin}
