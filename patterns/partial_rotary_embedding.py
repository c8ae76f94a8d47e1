"""RotaryEmbedding of the first R features of every head; the others are copied.

    x --+-- [.., :R] -- RotaryEmbedding --+-- Concat -- y
        +-- [.., R:] ---------------------+

x: [B, N, S, D] or, before the heads' Transpose, [B, S, N, D]. Seen in: GPT-NeoX, StableLM, Phi-3 exports; the embedding
itself is fused before. Paper: Black et al. 2022, arXiv:2204.06745. Numerics: none of its own.
Refuses: features in another order.
"""

import numpy as np

from onnxfuse.dsl import any_of, attr, fusion, op, scalar, tensor
from onnxfuse.fragments import cut
from onnxfuse.heads import HEADS_FIRST, merges_heads

own = op.ns("onnxfuse")


def undoes_the_merge(value, facts):
    """Whether the Reshape gives the heads back that another one in front of the operator merged."""
    merged = value.producer().inputs[0].producer().inputs[0]
    shape = facts.shape(merged.producer().inputs[0])
    return shape is not None and shape == facts.shape(value)


def turned(rows, cos, sin):
    """RotaryEmbedding of rows [B, S, N, R], as the fusions of whole heads write it."""
    flat = op.Reshape(rows, ...).where(merges_heads, "the Reshape does not merge the heads")
    y = own.RotaryEmbedding(flat, cos, sin, num_heads=attr("heads"), interleaved=attr("interleaved"))
    return op.Reshape(y, ...).where(undoes_the_merge, "the heads are not those that were merged")


@fusion(stage="rotary", op="RotaryEmbedding", tolerance={"float32": 4e-6, "float16": 6e-3, "bfloat16": 5e-2})
def partial_rotary_embedding(
    x=tensor("_ _ _ D"), rows=tensor("_ _ _ D"), cos=tensor("_ _ _"), sin=tensor("_ _ _"), size=scalar(), end=scalar()
):
    """Rotary embedding of the first features of every head: y = concat(rope(x[.., :R]), x[.., R:])."""
    of_heads = [
        op.Concat(op.Transpose(turned(op.Transpose(head, perm=HEADS_FIRST), cos, sin), perm=HEADS_FIRST), tail, axis=-1)
        for head, tail in cut(x, size, end)
    ]
    of_rows = [op.Concat(turned(head, cos, sin), tail, axis=-1) for head, tail in cut(rows, size, end)]
    return any_of(*of_heads, *of_rows)


@partial_rotary_embedding.check
def whole(m):
    shape = (m.x or m.rows).shape
    yield all(isinstance(s, int) for s in (m.D, m.heads)), "the size of a head is {m.D}, expected a known number"
    yield m.facts.shape(m.outputs[0]) == shape, f"x is {m.x or m.rows}, the result {m.facts.shape(m.outputs[0])}"
    yield m.end is None or m.end >= m.D, "the copied features end at {m.end}, expected {m.D}"


@partial_rotary_embedding.rewrite
def fused(new, m):
    rows = m.rows.value if m.x is None else new.onnx.Transpose(m.x, perm=HEADS_FIRST)
    flat = new.onnx.Reshape(rows, np.array([0, 0, m.heads * m.D]))
    attributes = {"num_heads": m.heads, "interleaved": m.interleaved, "rotary_dim": turned_size(m)}
    y = new.RotaryEmbedding(flat, m.cos, m.sin, **attributes)
    y = new.onnx.Reshape(y, np.array([0, 0, m.heads, m.D]))
    return y if m.x is None else new.onnx.Transpose(y, perm=HEADS_FIRST)


def turned_size(m):
    """How many features of a head are turned."""
    if m.size is not None:
        return m.size
    split = next(node for node in m.nodes if node.op_type == "Split")
    return m.facts.shape(split.outputs[0])[-1]
