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

from onnxfuse.dsl import Refuse, any_of, attr, fusion, op, scalar, tensor


def halves(x, half, end):
    """The two ways to cut x in the middle of its last axis: (x1, x2)."""
    yield op.Slice(x, 0, half, axes=-1), op.Slice(x, half, end, axes=-1)
    low, high = op.Split(x, ..., axis=-1, outputs=2)
    yield low.where(is_half, "the parts are not halves"), high


def is_half(part, facts):
    """Whether `part` of a Split is as large as the other."""
    whole, half = facts.shape(part.producer().inputs[0]), facts.shape(part)
    return whole is not None and half is not None and whole[-1] == 2 * half[-1]


def flattens_pairs(value, facts):
    """Whether the Reshape takes [..., D/2, 2] to [..., D]."""
    pairs, flat = facts.shape(value.producer().inputs[0]), facts.shape(value)
    return pairs is not None and flat == (*pairs[:-2], pairs[-2] * 2) and pairs[-1] == 2


@fusion(stage="rotary", op="RotaryEmbedding", tolerance={"float32": 4e-6, "float16": 6e-3, "bfloat16": 5e-2})
def rotary_embedding(
    x=tensor("_ _ _ D"), rows=tensor("_ _ _ D"), cos=tensor(), sin=tensor(), half=scalar(), end=scalar()
):
    """Rotary embedding of half-split pairs: y = x * cos + concat(-x2, x1) * sin."""

    def turned(value):
        return any_of(*(op.Concat(-x2, x1, axis=-1) for x1, x2 in halves(value, half, end)))

    # ONNX Runtime's optimizer turns the halves before the heads are transposed
    late = op.Transpose(rows, perm=[0, 2, 1, 3])
    return x * cos + turned(x) * sin | late * cos + op.Transpose(turned(rows), perm=[0, 2, 1, 3]) * sin


@fusion(stage="rotary", op="RotaryEmbedding", tolerance={"float32": 4e-6, "float16": 6e-3, "bfloat16": 5e-2})
def interleaved_rotary_embedding(
    x=tensor("_ _ _ D"), pairs=tensor("_ _ _ H 2"), cos=tensor(), sin=tensor(), end=scalar()
):
    """Rotary embedding of interleaved pairs: y[2i] = x1*cos - x2*sin, y[2i+1] = x2*cos + x1*sin."""
    first, second = op.Split(pairs, ..., axis=-1, outputs=2)
    alternatives = [
        (op.Slice(x, 0, end, axes=-1, steps=2), op.Slice(x, 1, end, axes=-1, steps=2)),
        (op.Squeeze(first, axes=[-1]), op.Squeeze(second, axes=[-1])),
    ]
    stacked = []
    for x1, x2 in alternatives:
        even, odd = x1 * cos - x2 * sin, x2 * cos + x1 * sin
        stacked.append(op.Concat(op.Unsqueeze(even, axes=[-1]), op.Unsqueeze(odd, axes=[-1]), axis=-1))
    return op.Reshape(any_of(*stacked), ...).where(flattens_pairs, "the pairs are not laid out one after another")


@fusion(stage="rotary", op="RotaryEmbedding")
def standard_rotary_embedding(x=tensor("_ _ _ D"), cos=tensor("B|1 S W"), sin=tensor("B|1 S W")):
    """Rotary embedding already written as ai.onnx RotaryEmbedding (opset 23), on [B, N, S, D]."""
    return op.RotaryEmbedding(x, cos, sin, interleaved=attr("interleaved"), num_heads=attr(), rotary_embedding_dim=0)


@rotary_embedding.check
def cut_in_the_middle(m):
    yield isinstance(m.D, int) and m.D % 2 == 0, "the size of a head is {m.D}, expected a known even number"
    yield m.half is None or m.half == m.D // 2, "x is cut at {m.half}, expected the middle of {m.D}"
    yield m.end is None or m.end >= m.D, "the second half ends at {m.end}, expected {m.D}"


@rotary_embedding.check
def before_the_transpose(m):
    yield m.rows is None or heads_axis(m) == 1, "cos is {m.cos}, x is {m.rows} before its Transpose"


@interleaved_rotary_embedding.check
def whole_pairs(m):
    yield m.end is None or m.end >= m.D, "the pairs end at {m.end}, expected {m.D}"


@rotary_embedding.check
@interleaved_rotary_embedding.check
def supported(m):
    x = next(c for c in m.captured.values() if c.name in ("x", "rows", "pairs"))
    yield x.shape is not None and isinstance(x.shape[-1], int), f"x is {x}: its shape is unknown"
    yield x.dtype in m.FLOATS, f"x is {x}; kernels exist for {m.FLOATS}"
    for table in (m.cos, m.sin):
        yield table.dtype in (x.dtype, "float32"), f"a table is {table}, x is {x}"
    yield m.cos.shape == m.sin.shape, "cos is {m.cos}, sin is {m.sin}"
    yield heads_axis(m) is not None, f"cos is {m.cos}, x is {x}: not one row of the table a position"
    yield not turns_backwards(m.cos, m.sin), "cos is {m.cos}, sin is {m.sin}: they turn backwards, as if exchanged"


@standard_rotary_embedding.check
def heads_known(m):
    yield m.x.dtype in m.FLOATS, "x is {m.x}; kernels exist for {m.FLOATS}"
    yield isinstance(m.x.shape[1], int), "the number of heads is unknown: x is {m.x}"


@rotary_embedding.rewrite
def fused(new, m):
    return rotated(new, m, interleaved=0)


@interleaved_rotary_embedding.rewrite
def fused_interleaved(new, m):
    return rotated(new, m, interleaved=1)


@standard_rotary_embedding.rewrite
def fused_standard(new, m):
    rows = new.onnx.Transpose(m.x, perm=[0, 2, 1, 3])
    y = turned_rows(new, rows, m.cos.value, m.sin.value, m.x.shape[1], m.D, m.interleaved)
    return new.onnx.Transpose(y, perm=[0, 2, 1, 3])


def heads_axis(m):
    """1 where the heads of the turned [B, N, S, D] stand before its positions, 2 for [B, S, N, D], None for neither.

    The table tells: it has one row a position, and size one where the heads are.
    """
    table, x = m.cos.shape, turned_shape(m)
    if table is None or x is None or len(table) != 4 or table[-1] not in (x[-1], x[-1] // 2):
        return None
    for heads, length in ((1, 2), (2, 1)):
        if table[heads] == 1 and fits(table[length], x[length]) and (table[0] == 1 or fits(table[0], x[0])):
            return heads
    return None


def turned_shape(m):
    """The shape of the tensor whose pairs are turned."""
    if m.x is not None:
        return m.x.shape
    if m.fusion is interleaved_rotary_embedding:
        return (*m.pairs.shape[:3], 2 * m.pairs.shape[3])
    batch, length, heads, size = m.rows.shape
    return batch, heads, length, size


def fits(a, b):
    """Whether two sizes may be equal: not two different known ones, nor a known one against an open one."""
    return a == b or not (isinstance(a, int) or isinstance(b, int))


def turns_backwards(cos, sin):
    """Whether a constant table's angles fall from row to row, in its slowest pair."""
    if cos.constant is None or sin.constant is None or cos.constant.ndim != 4:
        return False
    c, s = (t.constant[0].reshape(-1, t.shape[-1])[:, t.shape[-1] // 2 - 1].astype(np.float64) for t in (cos, sin))
    return bool((s[1:] * c[:-1] - c[1:] * s[:-1] < 0).any())


def rotated(new, m, interleaved):
    """The operator on [B, S, N*D], between the Reshapes and the Transposes that the graph's layout needs."""
    axis = heads_axis(m)
    heads, size = turned_shape(m)[axis], turned_shape(m)[3]
    if not isinstance(heads, int):
        raise Refuse(f"the number of heads is {heads}, expected a known number")
    cos, sin = (table(new, t, axis) for t in (m.cos, m.sin))
    if m.x is None:
        rows = m.rows.value if interleaved == 0 else new.onnx.Reshape(m.pairs, np.array([0, 0, 0, size]))
    else:
        rows = new.onnx.Transpose(m.x, perm=[0, 2, 1, 3]) if axis == 1 else m.x.value
    y = turned_rows(new, rows, cos, sin, heads, size, interleaved)
    return new.onnx.Transpose(y, perm=[0, 2, 1, 3]) if axis == 1 else y


def turned_rows(new, rows, cos, sin, heads, size, interleaved):
    """The operator on rows [B, S, N, D]."""
    flat = new.onnx.Reshape(rows, np.array([0, 0, heads * size]))
    y = new.RotaryEmbedding(flat, cos, sin, num_heads=heads, interleaved=interleaved)
    return new.onnx.Reshape(y, np.array([0, 0, heads, size]))


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
