"""GatedMLP in standard ONNX operators."""

from __future__ import annotations

import math

import onnx_ir as ir

from onnxfuse.custom_ops.body import Body
from onnxfuse.custom_ops.rms_norm.function import entering


def function(
    op: Body,
    x: ir.Value,
    gate_weight: ir.Value,
    up_weight: ir.Value,
    down_weight: ir.Value,
    gate_bias: ir.Value | None,
    up_bias: ir.Value | None,
    down_bias: ir.Value | None,
    skip: ir.Value | None,
    norm_weight: ir.Value | None,
    gate_scale: ir.Value | None,
    up_scale: ir.Value | None,
    down_scale: ir.Value | None,
) -> dict[str, ir.Value]:
    """y = (act(h Wg + bg) * (h Wu + bu)) Wd + bd; h is x + skip, the output sum, and that normalised"""

    def project(value: ir.Value, weight: ir.Value, bias: ir.Value | None, scale: ir.Value | None) -> ir.Value:
        product = op.MatMul(value, op.matrix(weight, scale))
        return product if bias is None else op.Add(product, op.float32(bias))

    h, total = entering(op, x, skip, norm_weight)
    gate = _activated(op, project(h, gate_weight, gate_bias, gate_scale))
    product = op.Mul(gate, project(h, up_weight, up_bias, up_scale))
    y = project(product, down_weight, down_bias, down_scale)
    outputs = {"y": op.rounded(y, like=x)}
    return outputs if total is None else {**outputs, "sum": total}


def _activated(op: Body, z: ir.Value) -> ir.Value:
    """The activation, spelled in operators that every opset has."""
    activation = op.baked("activation")
    if activation == "silu":
        return op.Mul(z, op.Sigmoid(z))
    if activation == "gelu":
        distribution = op.Add(op.Erf(op.Mul(z, op.constant(math.sqrt(0.5)))), op.constant(1.0))
    elif activation == "gelu_tanh":
        cube = op.Mul(op.Mul(z, z), op.Mul(z, op.constant(0.044715)))
        inner = op.Mul(op.Add(z, cube), op.constant(math.sqrt(2 / math.pi)))
        distribution = op.Add(op.Tanh(inner), op.constant(1.0))
    else:
        raise ValueError(f"GatedMLP: activation is {activation!r}, expected silu, gelu or gelu_tanh")
    return op.Mul(op.Mul(z, op.constant(0.5)), distribution)
