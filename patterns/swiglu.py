"""SwiGLU: y = silu(gate) * up, silu(z) = z * sigmoid(z).

    gate --+-- sigmoid --+
           +----- * -----+-- * -- y
    up ---------------------+

gate, up: [...] float16|bfloat16|float32 of one shape and dtype.
Seen in: every Llama export; ONNX Runtime's optimizer writes silu as QuickGelu(alpha=1), opset 24 as Swish.
Paper: Shazeer 2020, arXiv:2002.05202. Numerics: one rounding instead of three.
"""

from onnxfuse.dsl import any_of, fusion, op, tensor


def silu(z):
    """z * sigmoid(z), in every spelling."""
    microsoft = op.ns("com.microsoft")
    return any_of(z * op.Sigmoid(z), op.Swish(z), microsoft.QuickGelu(z, alpha=1.0), z / (1 + op.Exp(-z)))


@fusion(stage="elementwise", op="SwiGLU", tolerance={"float32": 4e-6, "float16": 4e-3, "bfloat16": 3e-2})
def swiglu(gate=tensor(), up=tensor()):
    """SwiGLU: y = gate * sigmoid(gate) * up."""
    return silu(gate) * up | gate * (op.Sigmoid(gate) * up) | op.SwiGLU(gate, up)


@swiglu.check
def supported(m):
    yield m.gate.dtype in m.FLOATS, "gate is {m.gate.dtype}; kernels exist for {m.FLOATS}"
    yield m.gate.shape is not None and m.gate.shape == m.up.shape, "gate is {m.gate}, up is {m.up}: they broadcast"


@swiglu.rewrite
def fused(new, m):
    return new.SwiGLU(m.gate, m.up)
