"""SkipRMSNorm in standard ONNX operators."""

from __future__ import annotations

import onnx_ir as ir

from onnxfuse.custom_ops.body import Body
from onnxfuse.custom_ops.rms_norm.function import entering


def function(op: Body, x: ir.Value, skip: ir.Value, weight: ir.Value) -> dict[str, ir.Value]:
    """sum = x + skip; y = sum / sqrt(mean(sum^2) + epsilon) * weight"""
    h, total = entering(op, x, skip, weight)
    return {"y": op.rounded(h, like=x), "sum": total}
