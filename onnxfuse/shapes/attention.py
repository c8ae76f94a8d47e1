"""Attention in every domain, and the project's own operators."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from onnxfuse import dims
from onnxfuse.dims import Size
from onnxfuse.shapes.fact import (
    Call,
    Fact,
    Shape,
    rule,
)


@rule("GatedMLP")
def gated_mlp(call: Call) -> Sequence[Fact]:
    x, down = call[0].shape, call[3].shape
    y = None if x is None or down is None else (*x[:-1], _columns(down))
    return [Fact(call[0].dtype, y), Fact(call[0].dtype, x)][: len(call.node.outputs)]


@rule("Linear")
def linear(call: Call) -> Sequence[Fact]:
    if call.node.domain != "onnxfuse":
        return []
    x = call[0]
    facts = []
    for index in (3, 5, 7):
        weight = call[index].shape if call.has(index) else None
        known = x.shape is not None and weight is not None
        facts.append(Fact(x.dtype, (*x.shape[:-1], _columns(weight)) if known else None))
    return [*facts, x][: len(call.node.outputs)]


def _columns(weight: Shape) -> Size:
    """N of a weight [K, N] or of packed panels [N/32, K, 32]."""
    return weight[-1] if len(weight) == 2 else weight[0] * weight[2]


@rule("RotaryTable")
def rotary_table(call: Call) -> Sequence[Fact]:
    positions, frequencies = call[0].shape, call[1].shape
    shape = None if positions is None or frequencies is None else (*positions, frequencies[0])
    return [Fact(ir.DataType.FLOAT, shape)] * 2


@rule("Attention")
def attention(call: Call) -> Sequence[Fact]:
    """ai.onnx Attention-23 and onnxfuse Attention share ranks and head attributes; the past's place differs."""
    if call.node.domain == "com.microsoft":  # packs projections into another signature
        return []
    q, k, v = (call[i].shape for i in range(3))
    ours = call.node.domain == "onnxfuse"
    past_index = 3 if ours else 4
    heads = call.attr("num_heads" if ours else "q_num_heads")
    kv_heads = call.attr("kv_num_heads")
    outputs = [Fact(call[0].dtype)] * len(call.node.outputs)
    if q is None or k is None or v is None or (len(q) == 3 and not heads) or (3 in (len(k), len(v)) and not kv_heads):
        return outputs

    def heads_first(shape: Shape, count: int) -> Shape:
        return shape if len(shape) == 4 else (shape[0], count, shape[1], dims.floor_div(shape[2], count))

    k4, v4 = heads_first(k, kv_heads), heads_first(v, kv_heads)
    value_size = v4[3]
    y = (*q[:-1], value_size) if len(q) == 4 else (*q[:-1], heads * value_size)
    facts = [Fact(call[0].dtype, y)]
    if ours and call.attr("shared_cache", 0):
        facts += [
            Fact(call[past_index].dtype, call[past_index].shape),
            Fact(call[past_index + 1].dtype, call[past_index + 1].shape),
        ]
    else:
        rows_first = ours and call.attr("past_rows", 0)
        known = call[past_index].shape if call.has(past_index) else None
        past = known[1 if rows_first else 2] if known else 0
        for batch, count, new, size in (k4, v4):
            kept = (past + new, count) if rows_first else (count, past + new)
            facts.append(Fact(call[1].dtype, (batch, *kept, size)))
    return [*facts, Fact(call[0].dtype)][: len(call.node.outputs)]


@rule("GroupQueryAttention", "MultiHeadAttention")
def microsoft_attention(call: Call) -> Fact:
    """com.microsoft's operators take [B, S, N*D] or q, k and v packed into one tensor, and give [B, S, N*D]."""
    q, heads = call[0].shape, call.attr("num_heads")
    if q is None or len(q) != 3 or not heads:
        return Fact(call[0].dtype)
    packed = not call.has(1)
    parts = heads + 2 * call.attr("kv_num_heads", heads) if packed else heads
    return Fact(call[0].dtype, (q[0], q[1], heads * dims.floor_div(q[2], parts)))
