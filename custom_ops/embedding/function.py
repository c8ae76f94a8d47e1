"""Embedding in standard ONNX operators."""

from __future__ import annotations

import onnx_ir as ir

from onnxfuse.custom_ops.body import Body


def function(op: Body, ids: ir.Value, table: ir.Value) -> dict[str, ir.Value]:
    """y = table[ids]"""
    return {"y": op.Gather(table, ids, axis=0)}
