"""GatedMLP: y = (act(x @ Wg + bg) * (x @ Wu + bu)) @ Wd + bd.

    x --+-- @ Wg (+ bg) -- act --+
        +-- @ Wu (+ bu) ----- * -+-- @ Wd (+ bd) -- y

x: [..., H] float16|bfloat16|float32; weights [H, I], [H, I], [I, O] and biases constant, of x's dtype.
act: SiLU (Llama: SwiGLU), GELU by erf or tanh (Gemma: GEGLU). Paper: Shazeer 2020, arXiv:2002.05202.
Numerics: gate, up and their product stay in float32, where the graph rounds each to x's dtype.
Refuses: quantised weights (their products stay, SwiGLU still fuses); a projection with further users.
"""

import math

import numpy as np

from onnxfuse.dsl import any_of, constant, fusion, one_of, op, scalar, tensor

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
    packed_weight=constant("H _"),
    down_weight=constant("I O"),
    gate_bias=constant("I"),
    up_bias=constant("I"),
    down_bias=constant("O"),
    half=scalar(),
    end=scalar(),
):
    """Gated MLP: y = (act(x @ Wg + bg) * (x @ Wu + bu)) @ Wd + bd."""
    separate = linear(x, gate_weight, gate_bias), linear(x, up_weight, up_bias)
    packed = op.MatMul(x, packed_weight)  # Phi-3: the gate's columns, then the up projection's
    split = op.Split(packed, ..., axis=-1, outputs=2)
    sliced = op.Slice(packed, 0, half, axes=-1), op.Slice(packed, half, end, axes=-1)
    pairs = [separate, split, sliced]
    product = one_of(
        "activation",
        silu=any_of(*(own.SwiGLU(gate, up) for gate, up in pairs)),
        gelu=any_of(*(gelu_erf(gate) * up for gate, up in pairs)),
        gelu_tanh=any_of(*(gelu_tanh(gate) * up for gate, up in pairs)),
    )
    return linear(product, down_weight, down_bias)


@gated_mlp.check
def supported(m):
    yield m.x.dtype in m.FLOATS, "x is {m.x.dtype}; kernels exist for {m.FLOATS}"
    for weight in (m.gate_weight, m.up_weight, m.packed_weight, m.down_weight):
        yield weight is None or weight.dtype == m.x.dtype, f"a weight is {weight}, x is {m.x}"
    if m.packed_weight is not None:
        yield m.packed_weight.shape[1] == 2 * m.I, "the packed weight is {m.packed_weight}, expected 2 * {m.I} columns"
        yield m.half is None or m.half == m.I, "gate and up are cut at {m.half}, expected {m.I}"
        yield m.end is None or m.end >= 2 * m.I, "the up projection ends at {m.end}, expected {m.I} * 2"


@gated_mlp.rewrite
def fused(new, m):
    biases = [m.gate_bias, m.up_bias, m.down_bias]
    while biases and biases[-1] is None:
        biases.pop()
    gate, up = m.gate_weight, m.up_weight
    if m.packed_weight is not None:  # slices of a constant: they become weights when the model is written
        gate = columns(new, m.packed_weight, 0, m.I)
        up = columns(new, m.packed_weight, m.I, 2 * m.I)
    return new.GatedMLP(m.x, gate, up, m.down_weight, *biases, activation=m.activation)


def columns(new, weight, start, end):
    """Columns start..end of a weight."""
    return new.onnx.Slice(weight, np.array([start]), np.array([end]), np.array([1]))
