"""ONNX's own RotaryEmbedding and Attention (opset 23) in one of the layouts that they take: heads first, [B, N, S, D].

Both take [B, S, N*D] as well, and RotaryEmbedding a table of all positions with the numbers of those that are wanted.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxfuse.normalise.heads import HEADS_FIRST
from onnxfuse.normalise.simplify import attr, written
from onnxfuse.normalise.sweep import Site, replace, simplifies


@simplifies("RotaryEmbedding")
def tables_of_positions(node: ir.Node, site: Site) -> ir.Value | None:
    """The rows of the tables [M, W] that the positions [B, S] name, [B, S, W]."""
    if not site.canonical or len(node.inputs) < 4 or node.inputs[3] is None:
        return None
    x, cos, sin, positions = node.inputs
    rows = [site.op("Gather", table, positions, axis=0) for table in (cos, sin)]
    return site.op("RotaryEmbedding", x, *rows, **written(node))


@simplifies("RotaryEmbedding")
def rotary_heads_first(node: ir.Node, site: Site) -> ir.Value | None:
    """RotaryEmbedding of [B, S, N*D] between Transposes."""
    heads = attr(node, "num_heads", 0)
    if not site.canonical or not heads or site.facts.rank(node.inputs[0]) != 3:
        return None
    x = _heads_first(node.inputs[0], heads, site)
    y = site.op("RotaryEmbedding", x, *node.inputs[1:], **written(node, "num_heads"))
    return _heads_merged(y, site)


@simplifies("Attention")
def attention_heads_first(node: ir.Node, site: Site) -> ir.Value | None:
    """Attention of [B, S, N*D] between Transposes; its presents have the heads first already."""
    heads, groups = attr(node, "q_num_heads", 0), attr(node, "kv_num_heads", 0)
    ranks = [site.facts.rank(value) for value in node.inputs[:3]]
    # the products of queries and keys are one more output, in a layout of its own
    if not site.canonical or not heads or not groups or ranks != [3, 3, 3] or len(node.outputs) > 3:
        return None
    counts = (heads, groups, groups)
    split = [_heads_first(value, count, site) for value, count in zip(node.inputs[:3], counts, strict=True)]
    attributes = written(node, "q_num_heads", "kv_num_heads")
    made = site.op("Attention", *split, *node.inputs[3:], outputs=len(node.outputs), **attributes)
    y, *presents = made if isinstance(made, tuple) else (made,)
    for old, new in zip(node.outputs[1:], presents, strict=True):
        replace(old, new, site.facts)
    return _heads_merged(y, site)


def _heads_first(x: ir.Value, heads: int, site: Site) -> ir.Value:
    """x [B, S, N*D] as [B, N, S, D]."""
    size = site.facts.shape(x)[2]
    rows = site.op("Reshape", x, site.constant([0, 0, heads, size // heads if isinstance(size, int) else -1], "shape"))
    return site.op("Transpose", rows, perm=HEADS_FIRST)


def _heads_merged(y: ir.Value, site: Site) -> ir.Value:
    """y [B, N, S, D] as [B, S, N*D]."""
    rows = site.op("Transpose", y, perm=HEADS_FIRST)
    return site.op("Reshape", rows, site.constant([0, 0, -1], "shape"))
