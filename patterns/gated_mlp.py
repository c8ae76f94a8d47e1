"""GatedMLP: y = (act(x @ Wg + bg) * (x @ Wu + bu)) @ Wd + bd.

    x --+-- @ Wg (+ bg) -- act --+
        +-- @ Wu (+ bu) ----- * -+-- @ Wd (+ bd) -- y

x: [..., H] float16|bfloat16|float32; weights [H, I], [H, I], [I, O] and biases constant, of x's dtype.
act: SiLU (Llama: SwiGLU), GELU by erf or tanh (Gemma: GEGLU). Paper: Shazeer 2020, arXiv:2002.05202.
Numerics: gate, up and their product stay in float32, where the graph rounds each to x's dtype.
Refuses: quantised weights (their products stay, SwiGLU still fuses); a projection with further users.
"""

import math

from onnxfuse.dsl import any_of, constant, fusion, one_of, op, tensor

own = op.ns("onnxfuse")
SQRT_HALF, SQRT_2_OVER_PI = math.sqrt(0.5), math.sqrt(2 / math.pi)


def linear(x, weight, bias):
    """x @ weight, with a bias or without."""
    product = op.MatMul(x, weight)
    return product + bias | product


def gelu_erf(z):
    """z/2 * (1 + erf(z / sqrt 2))"""
    cdf = 1 + op.Erf(z / math.sqrt(2) | z * SQRT_HALF)
    return any_of(op.Gelu(z), z * cdf * 0.5, z * 0.5 * cdf, z * (cdf * 0.5))


def gelu_tanh(z):
    """z/2 * (1 + tanh(sqrt(2/pi) * (z + 0.044715 z^3)))"""
    cube = any_of(z**3, z * z * z)
    inner = (z + cube * 0.044715) * SQRT_2_OVER_PI
    cdf = 1 + op.Tanh(inner)
    return any_of(op.Gelu(z, approximate="tanh"), z * 0.5 * cdf, z * cdf * 0.5, z * (cdf * 0.5))


@fusion(stage="mlp", op="GatedMLP", tolerance={"float32": 2e-5, "float16": 1e-2, "bfloat16": 6e-2})
def gated_mlp(
    x=tensor("... H"),
    gate_weight=constant("H I"),
    up_weight=constant("H I"),
    down_weight=constant("I O"),
    gate_bias=constant("I"),
    up_bias=constant("I"),
    down_bias=constant("O"),
):
    """Gated MLP: y = (act(x @ Wg + bg) * (x @ Wu + bu)) @ Wd + bd."""
    gate = linear(x, gate_weight, gate_bias)
    up = linear(x, up_weight, up_bias)
    product = one_of(
        "activation",
        silu=own.SwiGLU(gate, up),
        gelu=gelu_erf(gate) * up,
        gelu_tanh=gelu_tanh(gate) * up,
    )
    return linear(product, down_weight, down_bias)


@gated_mlp.check
def supported(m):
    yield m.x.dtype in m.FLOATS, "x is {m.x.dtype}; kernels exist for {m.FLOATS}"
    for weight in (m.gate_weight, m.up_weight, m.down_weight):
        yield weight.dtype == m.x.dtype, f"a weight is {weight}, x is {m.x}"


@gated_mlp.rewrite
def fused(new, m):
    biases = [m.gate_bias, m.up_bias, m.down_bias]
    while biases and biases[-1] is None:
        biases.pop()
    return new.GatedMLP(m.x, m.gate_weight, m.up_weight, m.down_weight, *biases, activation=m.activation)
