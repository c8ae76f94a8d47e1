"""RotaryTable: cos, sin of position * inv_freq, computed once a step for all layers.

    position_ids -- (Unsqueeze, Cast) -- * inv_freq -- f -- Concat(f, f) --+-- cos (* scale)
                                                                          +-- sin (* scale)

position_ids: [B, S] integer; inv_freq: [F] constant float32, scaled as the model scales it (linear, llama3, yarn).
Each angle is there once, twice in two halves, or, for interleaved pairs, twice one by one (Cohere).
The exporters write the outer product as Mul (torch 2.13 dynamo) or as MatMul and Transpose (the others).
Numerics: the same product, cosine and sine in float32.
"""

import numpy as np

from onnxfuse.dsl import any_of, constant, fusion, maybe, one_of, op, scalar, tensor


def outer_factor(positions, line, axis):
    """Positions [B, S], or a line of them [S], as float32 with a new axis of size one at `axis` of three."""
    spread = any_of(op.Unsqueeze(positions, axes=[axis]), op.Unsqueeze(line, axes=sorted([0, axis])))
    return op.Cast(spread, to="float32")


def repeats_one_by_one(value, facts):
    """Whether Reshape(Expand(Unsqueeze(x))) [..., 2F] holds each entry of x [..., F] twice."""
    spread = value.producer().inputs[0]
    shape = facts.shape(spread.producer().inputs[0])
    return (
        shape is not None
        and facts.shape(spread) == (*shape[:-1], 2)
        and facts.shape(value) == (*shape[:-2], shape[-2] * 2)
    )


def scaled(table, scale, divisor):
    """The table times the attention scaling, if there is one."""
    return any_of(table * scale, table / divisor, table)


@fusion(stage="elementwise", op="RotaryTable", tolerance={"float32": 1e-5})
def rotary_table(positions=tensor("B S"), line=tensor("S"), frequencies=constant(), scale=scalar(), divisor=scalar()):
    """Rotary table: cos and sin of position * inv_freq, times the attention scaling."""
    spread = maybe.Expand(frequencies, ...)
    column, row = outer_factor(positions, line, 2), outer_factor(positions, line, 1)
    crosswise = any_of(op.MatMul(spread, row), spread * row)  # [B, F, S]
    angle = any_of(column * frequencies, op.MatMul(column, spread), op.Transpose(crosswise, perm=[0, 2, 1]))
    doubled = any_of(
        op.Concat(angle, angle, axis=-1),
        op.Transpose(op.Concat(crosswise, crosswise, axis=1), perm=[0, 2, 1]),  # by ONNX Runtime's optimizer
    )
    beside = op.Expand(op.Unsqueeze(angle, axes=[-1]), ...)
    pairs = op.Reshape(beside, ...).where(repeats_one_by_one, "the angles are not repeated one by one")
    angles = one_of("width", full=doubled, pairs=pairs, half=angle)
    return scaled(op.Cos(angles), scale, divisor), scaled(op.Sin(angles), scale, divisor)


@rotary_table.check
def outer_product(m):
    yield m.frequencies.dtype == "float32", "inv_freq is {m.frequencies.dtype}, expected float32"
    yield m.frequencies.constant is not None, "inv_freq is {m.frequencies}: too large to be one"
    line = frequencies_of(m)
    yield line is not None, "inv_freq is {m.frequencies}: more than one line of numbers"
    given = m.positions or m.line
    yield given.shape is not None, f"the positions are {given}: their shape is unknown"
    batch_and_length = m.positions.shape if m.positions is not None else (1, *m.line.shape)
    expected = (*batch_and_length, line.size * (1 if m.width == "half" else 2))
    yield m.facts.shape(m.outputs[0]) == expected, f"the table is {m.facts.shape(m.outputs[0])}, expected {expected}"


def frequencies_of(m):
    """inv_freq [F]; None unless it is that, with axes of size one or repeated for every batch."""
    content = m.frequencies.constant
    if content.ndim == 3 and (content == content[:1]).all():
        content = content[:1]
    return content.reshape(-1) if sum(size != 1 for size in content.shape) <= 1 else None


@rotary_table.check
def both_scaled(m):
    cos, sin = (None if o.producer().op_type in ("Cos", "Sin") else o.producer().op_type for o in m.outputs)
    yield cos == sin, "only one of cos and sin is scaled"


@rotary_table.rewrite
def fused(new, m):
    given = m.positions or m.line
    positions = given.value if given.dtype == "int64" else new.onnx.Cast(given, to="int64")
    if m.positions is None:
        positions = new.onnx.Unsqueeze(positions, np.array([0]))
    factor = 1 / m.divisor if m.divisor else m.scale
    frequencies = frequencies_of(m)
    cos, sin = new.RotaryTable(positions, new.constant(frequencies, "inv_freq"), scale=factor, outputs=2)
    if m.width == "half":
        return cos, sin
    if m.width == "full":
        return new.onnx.Concat(cos, cos, axis=-1), new.onnx.Concat(sin, sin, axis=-1)
    stacked = [new.onnx.Unsqueeze(table, np.array([3])) for table in (cos, sin)]
    spread = [new.onnx.Expand(table, np.array([1, 1, 1, 2])) for table in stacked]
    return tuple(new.onnx.Reshape(table, np.array([0, 0, 2 * frequencies.size])) for table in spread)
