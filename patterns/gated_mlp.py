"""GatedMLP: y = (act(x @ Wg + bg) * (x @ Wu + bu)) @ Wd + bd.

    x --+-- @ Wg (+ bg) -- act --+
        +-- @ Wu (+ bu) ----- * -+-- @ Wd (+ bd) -- y

x: [..., H] float16|bfloat16|float32; weights [H, I], [H, I], [I, O] and biases constant, of x's dtype.
act: SiLU (Llama: SwiGLU), GELU by erf or tanh (Gemma: GEGLU). Paper: Shazeer 2020, arXiv:2002.05202.
Numerics: gate, up and their product stay in float32, where the graph rounds each to x's dtype.
Refuses: quantised weights (their products stay, SwiGLU still fuses); a projection with further users.
"""

from functools import partial

import numpy as np

from onnxfuse.dsl import any_of, constant, fusion, maybe, one_of, op, scalar, tensor
from onnxfuse.fragments import gelu, gelu_tanh, halves
from onnxfuse.precision import rounds_no_further

own = op.ns("onnxfuse")


def keeps_rows(value, facts):
    """Whether a Reshape of rows gives back the leading axes that another one merged."""
    rows = value.producer().inputs[0].producer().inputs[0]
    x, out = facts.shape(rows.producer().inputs[0]), facts.shape(value)
    return x is not None and out is not None and out[:-1] == x[:-1] and facts.shape(rows)[-1] == x[-1]


def linear(x, weight, bias):
    """x @ weight, with a bias or without; Gemm takes its rows."""
    rows = op.Reshape(x, ...)
    product = x @ weight
    of_rows = any_of(op.Gemm(rows, weight, bias), op.Gemm(rows, weight))
    unmerged = op.Reshape(of_rows, ...).where(keeps_rows, "the Reshapes change the last axis")
    return any_of(product + bias, product, op.Gemm(x, weight, bias), op.Gemm(x, weight), unmerged)


def gated(activation, gate, up):
    """activation(gate) * up"""
    return maybe.Cast(maybe.Cast(activation(maybe.Cast(gate))) * maybe.Cast(up))


@fusion(stage="mlp", op="GatedMLP", tolerance={"float32": 2e-5, "float16": 1e-2, "bfloat16": 6e-2})
def gated_mlp(
    x=tensor("... H"),
    gate_weight=constant("H I"),
    up_weight=constant("H I"),
    packed_weight=constant("H _"),
    packed_bias=constant("_"),
    down_weight=constant("I O"),
    gate_bias=constant("I"),
    up_bias=constant("I"),
    down_bias=constant("O"),
    half=scalar(),
    end=scalar(),
):
    """Gated MLP: y = (act(x @ Wg + bg) * (x @ Wu + bu)) @ Wd + bd."""
    separate = linear(x, gate_weight, gate_bias), linear(x, up_weight, up_bias)
    cut = halves(linear(x, packed_weight, packed_bias), half, end)

    def of(product):
        """The product of gate and up; packed, the gate's columns come first (Phi-3), or the up projection's."""
        return one_of(
            "order",
            gate_first=any_of(*(product(gate, up) for gate, up in [separate, *cut])),
            up_first=any_of(*(product(gate, up) for up, gate in cut)),
        )

    product = one_of(
        "activation",
        silu=of(own.SwiGLU),
        gelu=of(partial(gated, gelu)),
        gelu_tanh=of(partial(gated, gelu_tanh)),
    )
    return linear(product, down_weight, down_bias)


gated_mlp.check(rounds_no_further)


@gated_mlp.check
def supported(m):
    yield m.x.dtype in m.FLOATS, "x is {m.x.dtype}; kernels exist for {m.FLOATS}"
    for weight in (m.gate_weight, m.up_weight, m.packed_weight, m.down_weight):
        yield weight is None or weight.dtype == m.x.dtype, f"a weight is {weight}, x is {m.x}"
    if m.packed_weight is not None:
        yield m.packed_weight.shape[1] == 2 * m.I, "the packed weight is {m.packed_weight}, expected 2 * {m.I} columns"
        yield m.half is None or m.half == m.I, "gate and up are cut at {m.half}, expected {m.I}"
        yield m.end is None or m.end >= 2 * m.I, "the second half ends at {m.end}, expected {m.I} * 2"


@gated_mlp.rewrite
def fused(new, m):
    gate, up, biases = m.gate_weight, m.up_weight, [m.gate_bias, m.up_bias, m.down_bias]
    if m.packed_weight is not None:  # slices of a constant: they become weights when the model is written
        gate, up = halved(new, m.packed_weight, m)
    if m.packed_bias is not None:
        biases[:2] = halved(new, m.packed_bias, m)
    return new.GatedMLP(m.x, gate, up, m.down_weight, *biases, activation=m.activation)


def halved(new, packed, m):
    """The columns of the gate, and those of the up projection."""
    axis = np.array([packed.rank - 1])
    starts = (0, m.I) if m.order == "gate_first" else (m.I, 0)
    return [new.onnx.Slice(packed, np.array([start]), np.array([start + m.I]), axis) for start in starts]
