"""RotaryTable: cos, sin of position * inv_freq, computed once a step for all layers.

    position_ids -- (Unsqueeze, Cast) -- * inv_freq -- f -- Concat(f, f) --+-- cos (* scale)
                                                                          +-- sin (* scale)

position_ids: [B, S] integer; inv_freq: [F] constant float32, scaled as the model scales it (linear, llama3, yarn).
The exporters write the outer product as Mul (torch 2.13 dynamo) or as MatMul and Transpose (the others).
Numerics: the same product, cosine and sine in float32.
"""

from onnxfuse.dsl import any_of, constant, fusion, maybe, one_of, op, scalar, tensor


def column(positions):
    """positions [B, S] as float32 [B, S, 1]"""
    return op.Cast(op.Unsqueeze(positions, axes=[2]), to="float32") | op.Unsqueeze(
        op.Cast(positions, to="float32"), axes=[2]
    )


def row(positions):
    """positions [B, S] as float32 [B, 1, S]"""
    return op.Cast(op.Unsqueeze(positions, axes=[1]), to="float32") | op.Unsqueeze(
        op.Cast(positions, to="float32"), axes=[1]
    )


@fusion(stage="rotary", op="RotaryTable", tolerance={"float32": 1e-5})
def rotary_table(positions=tensor("B S"), frequencies=constant(), scale=scalar()):
    """Rotary table: cos and sin of position * inv_freq, times the attention scaling."""
    spread = maybe.Expand(frequencies, ...)
    angle = any_of(
        column(positions) * frequencies,
        op.MatMul(column(positions), spread),
        op.Transpose(op.MatMul(spread, row(positions)), perm=[0, 2, 1]),
    )
    angles = one_of("width", full=op.Concat(angle, angle, axis=-1), half=angle)
    cos, sin = op.Cos(angles), op.Sin(angles)
    return cos * scale | cos, sin * scale | sin


@rotary_table.check
def outer_product(m):
    yield m.frequencies.dtype == "float32", "inv_freq is {m.frequencies.dtype}, expected float32"
    shape = m.frequencies.shape
    yield shape is not None and sum(s != 1 for s in shape) <= 1, "inv_freq is {m.frequencies}: more than one axis"
    yield m.frequencies.constant is not None, "inv_freq is {m.frequencies}: too large to be one"
    expected = (*m.positions.shape, m.frequencies.constant.size * (2 if m.width == "full" else 1))
    yield m.facts.shape(m.outputs[0]) == expected, f"the table is {m.facts.shape(m.outputs[0])}, expected {expected}"


@rotary_table.rewrite
def fused(new, m):
    positions = m.positions.value
    if m.positions.dtype != "int64":
        positions = new.onnx.Cast(positions, to="int64")
    frequencies = new.constant(m.frequencies.constant.reshape(-1), "inv_freq")
    cos, sin = new.RotaryTable(positions, frequencies, scale=m.scale, outputs=2)
    if m.width == "half":
        return cos, sin
    return new.onnx.Concat(cos, cos, axis=-1), new.onnx.Concat(sin, sin, axis=-1)
