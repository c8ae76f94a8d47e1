"""RotaryEmbedding: every pair of features (x1, x2) is turned by its position's angle.

    half-split pairs (i, i + R/2)                       interleaved pairs (2i, 2i + 1)
    x --+------------------ * cos --+-- + -- y          x1 = x[0::2], x2 = x[1::2]
        +-- Concat(-x2, x1) * sin --+                   y = stack(x1*cos - x2*sin, x2*cos + x1*sin) on a last axis, flat

x: [B, N, S, D] or, before the heads' Transpose, [B, S, N, D]; cos, sin: [B|1, 1, S, W], [B|1, S, 1, W]; W is D, or D/2
where one entry serves a pair. Half-split: transformers; interleaved: the interface of Llama-2-7b-ONNX.
Paper: Su et al. 2021, arXiv:2104.09864. Numerics: products and sum in float32, one rounding instead of three.
Refuses: another sign or order of the halves, a table that doesn't have one row a position.
"""

import numpy as np

from onnxfuse.dsl import Refuse, any_of, fusion, op, scalar, tensor


def halves(x, half, end):
    """The two ways to cut x in the middle of its last axis."""
    low, high = op.Split(x, axis=-1, split=None, outputs=2)
    yield op.Slice(x, 0, half, axes=-1), op.Slice(x, half, end, axes=-1)
    yield low, high


@fusion(stage="rotary", op="RotaryEmbedding", tolerance={"float32": 4e-6, "float16": 6e-3, "bfloat16": 5e-2})
def rotary_embedding(x=tensor("_ _ _ D"), cos=tensor(), sin=tensor(), half=scalar(), end=scalar()):
    """Rotary embedding of half-split pairs: y = x * cos + concat(-x2, x1) * sin."""
    turned = any_of(*(op.Concat(-x2, x1, axis=-1) for x1, x2 in halves(x, half, end)))
    return x * cos + turned * sin


@fusion(stage="rotary", op="RotaryEmbedding", tolerance={"float32": 4e-6, "float16": 6e-3, "bfloat16": 5e-2})
def interleaved_rotary_embedding(x=tensor("_ _ _ D"), cos=tensor(), sin=tensor(), end=scalar()):
    """Rotary embedding of interleaved pairs: y[2i] = x1*cos - x2*sin, y[2i+1] = x2*cos + x1*sin."""
    pairs = op.Reshape(x, ...)
    first, second = op.Split(pairs, axis=-1, split=None, outputs=2)
    alternatives = [
        (op.Slice(x, 0, end, axes=-1, steps=2), op.Slice(x, 1, end, axes=-1, steps=2)),
        (op.Squeeze(first, axes=[-1]), op.Squeeze(second, axes=[-1])),
    ]
    stacked = []
    for x1, x2 in alternatives:
        even, odd = x1 * cos - x2 * sin, x2 * cos + x1 * sin
        stacked.append(op.Concat(op.Unsqueeze(even, axes=[-1]), op.Unsqueeze(odd, axes=[-1]), axis=-1))
    return op.Reshape(any_of(*stacked), ...)


@rotary_embedding.check
def cut_in_the_middle(m):
    yield isinstance(m.D, int) and m.D % 2 == 0, "the size of a head is {m.D}, expected a known even number"
    yield m.half is None or m.half == m.D // 2, "x is cut at {m.half}, expected the middle of {m.D}"
    yield m.end is None or m.end >= m.D, "the second half ends at {m.end}, expected {m.D}"


@rotary_embedding.check
@interleaved_rotary_embedding.check
def supported(m):
    yield m.x.dtype in m.FLOATS, "x is {m.x.dtype}; kernels exist for {m.FLOATS}"
    yield m.facts.shape(m.outputs[0]) == m.x.shape, "the result has not x's shape"
    for table in (m.cos, m.sin):
        yield table.dtype in (m.x.dtype, "float32"), f"a table is {table}, x is {m.x}"
    yield m.cos.shape == m.sin.shape, "cos is {m.cos}, sin is {m.sin}"
    yield heads_axis(m) is not None, "cos is {m.cos}, x is {m.x}: not one row of the table a position"


@interleaved_rotary_embedding.check
def whole_pairs(m):
    yield isinstance(m.D, int) and m.D % 2 == 0, "the size of a head is {m.D}, expected a known even number"
    yield m.end is None or m.end >= m.D, "the pairs end at {m.end}, expected {m.D}"


@rotary_embedding.rewrite
def fused(new, m):
    return rotated(new, m, interleaved=0)


@interleaved_rotary_embedding.rewrite
def fused_interleaved(new, m):
    return rotated(new, m, interleaved=1)


def heads_axis(m):
    """1 for x [B, N, S, D], 2 for x [B, S, N, D], as the table's shape tells; None where it fits neither."""
    table, x = m.cos.shape, m.x.shape
    if table is None or x is None or len(table) != 4 or len(x) != 4 or table[-1] not in (m.D, m.D // 2):
        return None
    for heads, length in ((1, 2), (2, 1)):
        if table[heads] == 1 and fits(table[length], x[length]) and (table[0] == 1 or fits(table[0], x[0])):
            return heads
    return None


def fits(a, b):
    """Whether two sizes may be equal: not two different known ones, nor a known one against an open one."""
    return a == b or not (isinstance(a, int) or isinstance(b, int))


def rotated(new, m, interleaved):
    """The operator on [B, S, N*D], between the Reshapes and the Transpose that the graph's layout needs."""
    axis = heads_axis(m)
    x, heads = m.x.value, m.x.shape[axis]
    if not isinstance(heads, int):
        raise Refuse(f"the number of heads is {heads}, expected a known number")
    cos, sin = (table(new, t, axis) for t in (m.cos, m.sin))
    if axis == 1:
        x = new.onnx.Transpose(x, perm=[0, 2, 1, 3])
    flat = new.onnx.Reshape(x, np.array([0, 0, heads * m.D]))
    y = new.RotaryEmbedding(flat, cos, sin, num_heads=heads, interleaved=interleaved)
    y = new.onnx.Reshape(y, np.array([0, 0, heads, m.D]))
    return new.onnx.Transpose(y, perm=[0, 2, 1, 3]) if axis == 1 else y


def table(new, captured, axis):
    """The table as [B|1, S, W], and as its first half where it repeats one: W = D/2."""
    value, facts = captured.value, captured.facts
    if captured.is_constant and captured.constant is not None:
        rows = captured.constant.squeeze(axis)
        half = rows.shape[-1] // 2
        return new.constant(rows[..., :half] if (rows[..., :half] == rows[..., half:]).all() else rows, value.name)
    inner = value.producer()
    if inner is not None and inner.op_type == "Unsqueeze" and facts.content(inner.inputs[1]) in ([axis], [axis - 4]):
        value = inner.inputs[0]
    else:
        value = new.onnx.Squeeze(value, np.array([axis]))
    source = value.producer()
    if source is not None and source.op_type == "Cast" and str(facts.dtype(source.inputs[0])) == "FLOAT":
        source = source.inputs[0].producer()  # the kernel takes float32 tables beside any x
        value = source.outputs[0] if source is not None else value
    if source is not None and source.op_type == "Concat" and len(source.inputs) == 2 and len(set(source.inputs)) == 1:
        value = source.inputs[0]
    return value
