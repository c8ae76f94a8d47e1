"""SwiGLU in standard ONNX operators."""

from __future__ import annotations

import onnx_ir as ir

from onnxfuse.custom_ops.body import Body


def function(op: Body, gate: ir.Value, up: ir.Value) -> dict[str, ir.Value]:
    """y = gate * sigmoid(gate) * up"""
    g = op.float32(gate)
    return {"y": op.rounded(op.Mul(op.Mul(g, op.Sigmoid(g)), op.float32(up)), like=gate)}
