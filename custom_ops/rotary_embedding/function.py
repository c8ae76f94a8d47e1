"""RotaryEmbedding in standard ONNX operators."""

from __future__ import annotations

import onnx_ir as ir

from onnxfuse.custom_ops.body import Body


def function(op: Body, x: ir.Value, cos: ir.Value, sin: ir.Value) -> dict[str, ir.Value]:
    """y = x * cos + rotated * sin, where rotated holds (-b, a) for every pair (a, b) of x"""
    return {"y": rotated(op, x, cos, sin, "num_heads")}


def rotated(op: Body, x: ir.Value, cos: ir.Value, sin: ir.Value, count: str) -> ir.Value:
    """The input x, of which the attribute `count` counts the heads, rotated and rounded to its dtype."""
    has_head_axis = op.rank(x) == 4
    interleaved = bool(op.baked("interleaved", 0))
    head_size = op.head_size(x, count)
    rotary_dim = op.baked("rotary_dim", 0) or head_size
    half, entries = rotary_dim // 2, 2 * op.dim(cos, -1) // rotary_dim  # entries of the table a pair: 1 or 2

    def pairs(value: ir.Value, leading: int, of_a_pair: int) -> ir.Value:
        shape = [half, of_a_pair] if interleaved else [of_a_pair, half]
        return op.Reshape(value, op.constant([0] * leading + shape))

    def table(value: ir.Value) -> ir.Value:
        return op.Unsqueeze(pairs(op.float32(value), 2, entries), op.constant([1 if has_head_axis else 2]))

    h = op.float32(x)
    if not has_head_axis:
        heads = op.Unsqueeze(op.attribute(count, int), op.constant([0]))  # queries and keys share one body
        h = op.Reshape(h, op.Concat(op.constant([0, 0]), heads, op.constant([head_size]), axis=0))
    turned, copied = h, None
    if rotary_dim < head_size:
        turned, copied = op.split(h, [rotary_dim, head_size - rotary_dim], axis=-1)
    xs = pairs(turned, 3, 2)
    axis = -1 if interleaved else -2
    a, b = op.split(xs, [1, 1], axis=axis)
    across = op.Concat(op.Neg(b), a, axis=axis)
    y = op.Add(op.Mul(xs, table(cos)), op.Mul(across, table(sin)))
    y = op.Reshape(y, op.constant([0, 0, 0, rotary_dim]))
    if copied is not None:
        y = op.Concat(y, copied, axis=-1)
    if not has_head_axis:
        features = op.Mul(heads, op.constant([head_size]))
        y = op.Reshape(y, op.Concat(op.constant([0, 0]), features, axis=0))
    return op.rounded(y, like=x)
