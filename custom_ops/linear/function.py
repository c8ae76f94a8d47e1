"""Linear in standard ONNX operators."""

from __future__ import annotations

import onnx_ir as ir

from onnxfuse.custom_ops.body import Body
from onnxfuse.custom_ops.rms_norm.function import entering


def function(
    op: Body,
    x: ir.Value,
    skip: ir.Value | None,
    norm_weight: ir.Value | None,
    weight_0: ir.Value,
    bias_0: ir.Value | None,
    weight_1: ir.Value | None,
    bias_1: ir.Value | None,
    weight_2: ir.Value | None,
    bias_2: ir.Value | None,
    scale_0: ir.Value | None,
    scale_1: ir.Value | None,
    scale_2: ir.Value | None,
) -> dict[str, ir.Value]:
    """y_i = h W_i + b_i; sum = x + skip; h = sum / sqrt(mean(sum^2) + epsilon) * norm_weight"""
    h, total = entering(op, x, skip, norm_weight)

    def product(weight: ir.Value, bias: ir.Value | None, scale: ir.Value | None) -> ir.Value:
        y = op.MatMul(h, op.matrix(weight, scale))
        return op.rounded(y if bias is None else op.Add(y, op.float32(bias)), like=x)

    outputs = {"y_0": product(weight_0, bias_0, scale_0)}
    for name, weight, bias, scale in (("y_1", weight_1, bias_1, scale_1), ("y_2", weight_2, bias_2, scale_2)):
        if weight is not None:
            outputs[name] = product(weight, bias, scale)
        elif len(op.node.outputs) > len(outputs):  # a function makes what its node lacks before the last output
            outputs[name] = op.Identity(outputs["y_0"])
    return {**outputs, "sum": total} if skip is not None else outputs
