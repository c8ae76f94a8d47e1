"""SwiGLU: y = silu(gate) * up, silu(z) = z * sigmoid(z).

    gate --+-- sigmoid --+
           +----- * -----+-- * -- y
    up ---------------------+

gate, up: [...] float16|bfloat16|float32 of one shape and dtype.
Seen in: every Llama export; ONNX Runtime's optimizer writes silu as QuickGelu(alpha=1), opset 24 as Swish.
Paper: Shazeer 2020, arXiv:2002.05202. Numerics: one rounding instead of three.
"""

from onnxfuse.dsl import any_of, fusion, maybe, op, tensor
from onnxfuse.fragments import times_sigmoid
from onnxfuse.precision import rounds_no_further


def silu(z):
    """z * sigmoid(z), in every spelling."""
    microsoft = op.ns("com.microsoft")
    return any_of(times_sigmoid(z, z), op.Swish(z), microsoft.QuickGelu(z, alpha=1.0))


@fusion(stage="elementwise", op="SwiGLU", tolerance={"float32": 4e-6, "float16": 4e-3, "bfloat16": 3e-2})
def swiglu(gate=tensor(), up=tensor()):
    """SwiGLU: y = gate * sigmoid(gate) * up."""
    z, u = maybe.Cast(gate), maybe.Cast(up)
    product = any_of(
        maybe.Cast(silu(z)) * u,
        z * times_sigmoid(u, z),  # exporters re-associate the product
        op.SwiGLU(gate, up),
    )
    return maybe.Cast(product)


swiglu.check(rounds_no_further)


@swiglu.check
def supported(m):
    yield m.gate.dtype in m.FLOATS, "gate is {m.gate.dtype}; kernels exist for {m.FLOATS}"
    yield m.gate.shape is not None and m.gate.shape == m.up.shape, "gate is {m.gate}, up is {m.up}: they broadcast"
    yield m.gate.dtype == m.up.dtype, "gate is {m.gate}, up is {m.up}"
    result = m.facts.dtype(m.outputs[0]), m.facts.shape(m.outputs[0])
    yield result == (m.facts.dtype(m.gate.value), m.gate.shape), "gate is {m.gate}, the product {m.outputs[0]}"


@swiglu.rewrite
def fused(new, m):
    return new.SwiGLU(m.gate, m.up)
