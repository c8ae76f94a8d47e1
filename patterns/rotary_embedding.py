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
import onnx_ir as ir

from onnxfuse.dsl import Refuse, any_of, attr, fusion, maybe, op, scalar, tensor
from onnxfuse.fragments import halves
from onnxfuse.precision import rounds_no_further
from onnxfuse.repetition import entries
from onnxfuse.ties import may_be_one


def flattens_pairs(value, facts):
    """Whether the Reshape takes [..., D/2, 2] to [..., D]."""
    pairs, flat = facts.shape(value.producer().inputs[0]), facts.shape(value)
    return pairs is not None and flat == (*pairs[:-2], pairs[-2] * 2) and pairs[-1] == 2


def one_by_one(even, odd, sign=1):
    """The entries of both in turn, on the last axis; the even ones negated where `sign` is -1."""
    even = op.Unsqueeze(even, axes=[-1])
    stacked = op.Concat(-even if sign < 0 else even, op.Unsqueeze(odd, axes=[-1]), axis=-1)
    return op.Reshape(stacked, ...).where(flattens_pairs, "the pairs are not laid out one after another")


def of_halves(first, second, sign=1):
    """The entries of one, negated where `sign` is -1, behind those of the other."""
    return op.Concat(-first if sign < 0 else first, second, axis=-1)


def turned(x, x1, x2, cos, sin, join):
    """The rotation of pairs (x1, x2) of x, which `join` lays out: as a whole, or each half of it."""
    a, b = maybe.Cast(x1), maybe.Cast(x2)
    whole = maybe.Cast(x) * cos + maybe.Cast(join(x2, x1, sign=-1)) * sin
    return any_of(whole, join(a * cos - b * sin, b * cos + a * sin))


@fusion(stage="rotary", op="RotaryEmbedding", tolerance={"float32": 4e-6, "float16": 6e-3, "bfloat16": 5e-2})
def rotary_embedding(
    x=tensor("_ _ _ D"), rows=tensor("_ _ _ D"), cos=tensor(), sin=tensor(), half=scalar(), end=scalar()
):
    """Rotary embedding of half-split pairs: y = x * cos + concat(-x2, x1) * sin."""
    in_place = any_of(*(turned(x, x1, x2, cos, sin, of_halves) for x1, x2 in halves(x, half, end)))
    # ONNX Runtime's optimizer turns the halves before the heads are transposed
    late = op.Transpose(rows, perm=[0, 2, 1, 3])
    early = any_of(*(op.Concat(-x2, x1, axis=-1) for x1, x2 in halves(rows, half, end)))
    return maybe.Cast(in_place | late * cos + op.Transpose(early, perm=[0, 2, 1, 3]) * sin)


@fusion(stage="rotary", op="RotaryEmbedding", tolerance={"float32": 4e-6, "float16": 6e-3, "bfloat16": 5e-2})
def interleaved_rotary_embedding(x=tensor("_ _ _ D"), cos=tensor(), sin=tensor(), end=scalar()):
    """Rotary embedding of interleaved pairs: y[2i] = x1*cos - x2*sin, y[2i+1] = x2*cos + x1*sin."""
    x1, x2 = op.Slice(x, 0, end, axes=-1, steps=2), op.Slice(x, 1, end, axes=-1, steps=2)
    return maybe.Cast(turned(x, x1, x2, cos, sin, one_by_one))


@fusion(stage="rotary", op="RotaryEmbedding")
def standard_rotary_embedding(x=tensor("_ _ _ D"), cos=tensor("B|1 S W"), sin=tensor("B|1 S W")):
    """Rotary embedding already written as ai.onnx RotaryEmbedding (opset 23), on [B, N, S, D]."""
    attributes = {"interleaved": attr("interleaved"), "num_heads": attr(), "rotary_embedding_dim": attr("size")}
    return op.RotaryEmbedding(x, cos, sin, **attributes)


@fusion(stage="rotary", op="RotaryEmbedding")
def microsoft_rotary_embedding(
    x=tensor("_ _ _ D"), flat=tensor("_ _ _"), positions=tensor("_ _"), cos=tensor("_ W"), sin=tensor("_ W")
):
    """Rotary embedding already fused by ONNX Runtime's own tools, on [B, N, S, D] or [B, S, N*D]."""
    attributes = {
        "interleaved": attr("interleaved"),
        "num_heads": attr("heads"),
        "rotary_embedding_dim": attr("size"),
        "scale": 1.0,
        "is_packed_batching": 0,
    }
    return op.ns("com.microsoft").RotaryEmbedding(any_of(x, flat), positions, cos, sin, **attributes)


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


rotary_embedding.check(rounds_no_further)
interleaved_rotary_embedding.check(rounds_no_further)


@rotary_embedding.check
@interleaved_rotary_embedding.check
def supported(m):
    x = source(m)
    yield x.shape is not None and isinstance(x.shape[-1], int), f"x is {x}: its shape is unknown"
    yield x.dtype in m.FLOATS, f"x is {x}; kernels exist for {m.FLOATS}"
    for table in (m.cos, m.sin):
        yield table.dtype in m.FLOATS, f"a table is {table}; kernels exist for {m.FLOATS}"
    yield m.cos.shape is not None and m.cos.shape == m.sin.shape, "cos is {m.cos}, sin is {m.sin}"
    yield heads_axis(m) is not None, f"cos is {m.cos}, x is {x}: not one row of the table a position"
    yield not turns_backwards(m.cos, m.sin), "cos is {m.cos}, sin is {m.sin}: they turn backwards, as if exchanged"


@standard_rotary_embedding.check
def heads_known(m):
    yield m.x.dtype in m.FLOATS, "x is {m.x}; kernels exist for {m.FLOATS}"
    yield headed(m.x), "heads or their size are unknown: x is {m.x}"
    yield (m.size or m.D) // 2 == m.W, "the table is {m.cos}, expected one entry for each pair of {m.size} or {m.D}"


@microsoft_rotary_embedding.check
def sizes_known(m):
    x = m.x or m.flat
    yield x.dtype in m.FLOATS, f"x is {x}; kernels exist for {m.FLOATS}"
    yield m.cos.shape == m.sin.shape and isinstance(m.W, int), "cos is {m.cos}, sin is {m.sin}"
    yield m.x is None or headed(m.x), "heads or their size are unknown: x is {m.x}"
    known = m.flat is None or (m.flat.shape is not None and isinstance(m.flat.shape[2], int))
    yield known, "the size of all heads is unknown: x is {m.flat}"


def headed(x):
    """Whether x [B, N, S, D] has known numbers N and D."""
    return x.shape is not None and all(isinstance(size, int) for size in (x.shape[1], x.shape[3]))


@rotary_embedding.rewrite
def fused(new, m):
    return rotated(new, m, interleaved=0)


@interleaved_rotary_embedding.rewrite
def fused_interleaved(new, m):
    return rotated(new, m, interleaved=1)


@standard_rotary_embedding.rewrite
def fused_standard(new, m):
    size = 0 if m.size == m.D else m.size
    return turned_heads(new, m.x, m.cos.value, m.sin.value, m.interleaved, size)


@microsoft_rotary_embedding.rewrite
def fused_microsoft(new, m):
    cos, sin = (new.onnx.Gather(table, m.positions, axis=0) for table in (m.cos, m.sin))
    if m.x is not None:
        return turned_heads(new, m.x, cos, sin, m.interleaved, m.size)
    heads = m.heads or m.flat.shape[2] // (m.size or 2 * m.W)
    return turned_flat(new, m.flat, cos, sin, heads, m.interleaved, m.size)


def heads_axis(m):
    """1 where the heads of the turned [B, N, S, D] stand before its positions, 2 for [B, S, N, D], None for neither.

    The table tells: it has one row a position, and size one where the heads are.
    """
    table, x = (1,) * (4 - m.cos.rank) + m.cos.shape, turned_shape(m)
    if x is None or len(table) != 4 or table[-1] not in (x[-1], x[-1] // 2):
        return None
    for heads, length in ((1, 2), (2, 1)):
        one_row = table[heads] == 1 and may_be_one(table[length], x[length], m.facts)
        if one_row and (table[0] == 1 or may_be_one(table[0], x[0], m.facts)):
            return heads
    return None


def turned_shape(m):
    """The shape of the tensor whose pairs are turned."""
    shape = source(m).shape
    return shape if m.x is not None else (shape[0], shape[2], shape[1], shape[3])


def source(m):
    """x, or its rows before the heads' Transpose."""
    return m.x or m.rows


def turns_backwards(cos, sin):
    """Whether a constant table's angles fall from row to row, in its slowest pair."""
    if cos.constant is None or sin.constant is None:
        return False
    c, s = (t.constant.reshape(-1, t.shape[-1])[:, t.shape[-1] // 2 - 1].astype(np.float64) for t in (cos, sin))
    return bool((s[1:] * c[:-1] - c[1:] * s[:-1] < 0).any())


def rotated(new, m, interleaved):
    """The operator on [B, S, N*D], between the Reshapes and the Transposes that the graph's layout needs."""
    axis = heads_axis(m)
    heads, size = turned_shape(m)[axis], turned_shape(m)[3]
    if not isinstance(heads, int):
        raise Refuse(f"the number of heads is {heads}, expected a known number")
    x, result = source(m), m.facts.dtype(m.outputs[0])
    wide = x.dtype != "float32" and result != m.facts.dtype(x.value)  # the graph went on in a wider dtype than x's
    rows = new.onnx.Cast(x, to=int(result)) if wide else x.value
    if m.x is not None and axis == 1:
        rows = new.onnx.Transpose(rows, perm=[0, 2, 1, 3])
    y = turned_rows(new, rows, *tables(new, m, axis, interleaved), heads, size, interleaved)
    y = new.onnx.Transpose(y, perm=[0, 2, 1, 3]) if axis == 1 else y
    return y if wide or result == m.facts.dtype(x.value) else new.onnx.Cast(y, to=int(result))


def tables(new, m, axis, interleaved):
    """cos and sin as [B|1, S, W] in one dtype that the operator takes; W = D/2 if both hold each entry twice."""
    given = [Table(t, axis, interleaved) for t in (m.cos, m.sin)]
    full = m.cos.shape[-1] == turned_shape(m)[3]
    halved = [t.halved(new) for t in given] if full else [None]
    both = [t.whole(new) for t in given] if None in halved else halved
    dtypes = {m.facts.dtype(value) for value in both}
    if len(dtypes) == 1 and dtypes <= {ir.DataType.FLOAT, m.facts.dtype(m.outputs[0])}:
        return both
    return [new.onnx.Cast(value, to="float32") for value in both]


def turned_heads(new, x, cos, sin, interleaved, turned_size):
    """The operator on x [B, N, S, D]; 0 turns all of D."""
    rows = new.onnx.Transpose(x, perm=[0, 2, 1, 3])
    y = turned_rows(new, rows, cos, sin, x.shape[1], x.shape[3], interleaved, turned_size)
    return new.onnx.Transpose(y, perm=[0, 2, 1, 3])


def turned_rows(new, rows, cos, sin, heads, size, interleaved, turned_size=0):
    """The operator on rows [B, S, N, D]; 0 turns all of D."""
    flat = new.onnx.Reshape(rows, np.array([0, 0, heads * size]))
    y = turned_flat(new, flat, cos, sin, heads, interleaved, turned_size)
    return new.onnx.Reshape(y, np.array([0, 0, heads, size]))


def turned_flat(new, flat, cos, sin, heads, interleaved, turned_size):
    """The operator on [B, S, N*D]; 0 turns all of D."""
    part = {"rotary_dim": turned_size} if turned_size else {}
    return new.RotaryEmbedding(flat, cos, sin, num_heads=heads, interleaved=interleaved, **part)


class Table:
    """A captured table, with an axis of size one where the heads are."""

    def __init__(self, captured, axis, interleaved):
        self.captured, self.facts = captured, captured.facts
        self.axis, self.interleaved = axis, interleaved

    def constant(self):
        """The content [B|1, S, W] of a constant table."""
        content = self.captured.constant if self.captured.is_constant else None
        return (
            None if content is None else content.reshape((1,) * (4 - content.ndim) + content.shape).squeeze(self.axis)
        )

    def rows(self):
        """What the axis of the heads was put into, [B|1, S, W] or [S, W]; None if it was there from the start."""
        inner = self.captured.value.producer()
        if self.captured.rank != 4 or inner is None or inner.op_type != "Unsqueeze":
            return None
        axes = sorted(axis % 4 for axis in self.facts.content(inner.inputs[1]))
        return inner.inputs[0] if axes in ([self.axis], [0, self.axis]) else None

    def whole(self, new):
        """All of it, [B|1, S, W]."""
        value, content = self.captured.value, self.constant()
        if content is not None:
            return new.constant(content, value.name)
        if self.captured.rank == 3:
            return value if self.axis == 1 else new.onnx.Transpose(value, perm=[1, 0, 2])
        if self.captured.rank < 3:
            return new.onnx.Unsqueeze(value, np.arange(3 - self.captured.rank))
        rows = self.rows()
        return new.onnx.Squeeze(value, np.array([self.axis])) if rows is None else self._in_a_batch(rows, new)

    def halved(self, new):
        """One entry a pair, [B|1, S, W/2], None if the two of a pair are not known to be equal."""
        content = self.constant()
        if content is not None:
            half = content.shape[-1] // 2
            first, second = (content[..., i::2] for i in (0, 1)) if self.interleaved else np.split(content, [half], -1)
            return new.constant(first, self.captured.value.name) if (first == second).all() else None
        once = entries(self.captured.value, self.axis, self.interleaved, self.facts)
        return None if once is None else self._in_a_batch(once, new)

    def _in_a_batch(self, rows, new):
        """[S, W] as [1, S, W]."""
        return rows if self.facts.rank(rows) == 3 else new.onnx.Unsqueeze(rows, np.array([0]))
