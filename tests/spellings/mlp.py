"""Spellings of SwiGLU and of the gated MLP."""

from __future__ import annotations

import math

import numpy as np

from spellings.draft import HALF, Value
from spellings.writer import Writer

PRODUCTS = ("SwiGLU", "GatedMLP")


def swiglu(w: Writer) -> dict[str, int]:
    """gate * sigmoid(gate) * up."""
    shape = w.fixed((w.b, w.s, 12), (w.b, 12), (w.b, w.s, 2, 6))
    gate = w.input("gate", shape)
    narrow = len(shape) > 2 and w.mutates("broadcast_up", *PRODUCTS)
    up = w.input("up", (*shape[:-2], 1, shape[-1]) if narrow else shape)
    w.output(gated(w, gate, up, silu))
    return {"SwiGLU": 1}


def gated(w: Writer, gate: Value, up: Value, activation) -> Value:
    """activation(gate) * up, in float32 for a float16 graph now and then."""
    wide = gate.dtype in HALF and w.coin(0.2)
    dtype = gate.dtype
    act = activation(w, w.cast(gate, "float32") if wide else gate)
    if dtype == "float32" and w.mutates("rounded", *PRODUCTS):
        act = w.rounded(act)
    if w.mutates("sum", *PRODUCTS):
        return w.cast(w.add(act, w.cast(up, act.dtype)), dtype)
    if w.shifts_to("square"):
        return w.cast(w.mul(act, act), dtype)
    if wide and w.coin():
        return w.cast(w.mul(act, w.cast(up, "float32")), dtype)
    return w.mul(w.cast(act, dtype), up)


def silu(w: Writer, z: Value) -> Value:
    """z * sigmoid(z)"""
    if w.mutates("relu", *PRODUCTS):
        return w.apply("Relu", z)
    if w.mutates("hard", *PRODUCTS):
        return w.mul(z, w.apply("HardSigmoid", z))
    if w.mutates("twice", *PRODUCTS):  # QuickGelu with another alpha
        return w.mul(z, w.sigmoid(w.times(z, 1.702)))
    if w.mutates("other_sigmoid", *PRODUCTS):
        return w.mul(z, w.sigmoid(w.cast(w.input("other", z.shape), z.dtype)))
    if w.mutates("sign", *PRODUCTS):
        return w.mul(z, w.sigmoid(w.neg(z)))
    if w.mutates("no_product", *PRODUCTS):
        return w.sigmoid(z)
    if w.mutates("tanh", *PRODUCTS):
        return w.mul(z, w.apply("Tanh", z))
    kind = w.pick("sigmoid", "sigmoid", "sigmoid", "divided", "swish", "quick")
    if kind == "swish" and w.opset >= 24:
        return w.apply("Swish", z)
    if kind == "quick" and z.dtype == "float32":
        return w.apply("QuickGelu", z, alpha=1.0)
    if kind == "divided":
        return w._binary("Div", z, w.add(w.scalar(1, z), w.apply("Exp", w.neg(z))))
    return w.mul(z, w.sigmoid(z))


def gelu(w: Writer, z: Value) -> Value:
    """z/2 * (1 + erf(z / sqrt 2))"""
    if w.opset >= 20 and w.coin(0.3):
        return w.apply("Gelu", z)
    inner = w.times(z, 1 / math.sqrt(2) if not w.mutates("gelu_scale", "GatedMLP") else 1.0)
    return _half_times(w, z, w.add(w.scalar(1, z), w.apply("Erf", inner)))


def gelu_tanh(w: Writer, z: Value) -> Value:
    """z/2 * (1 + tanh(sqrt(2/pi) * (z + 0.044715 z^3)))"""
    if w.opset >= 20 and w.coin(0.3):
        return w.apply("Gelu", z, approximate="tanh")
    factor = 0.44715 if w.mutates("gelu_cube", "GatedMLP") else 0.044715
    kind = w.pick("power", "products", "factored")
    if kind == "factored":  # z * (1 + 0.044715 z^2)
        sum_ = w.mul(z, w.add(w.scalar(1, z), w.times(w.square(z), factor)))
    else:
        cube = w.power(z, 3) if kind == "power" else w.mul(z, w.mul(z, z))
        sum_ = w.add(z, w.times(cube, factor))
    inner = w.times(sum_, math.sqrt(2 / math.pi))
    return _half_times(w, z, w.add(w.scalar(1, z), w.apply("Tanh", inner)))


def _half_times(w: Writer, z: Value, cdf: Value) -> Value:
    """z * 0.5 * cdf in any order."""
    half = 1.0 if w.mutates("gelu_half", "GatedMLP") else 0.5
    kind = w.pick("left", "right", "last")
    if kind == "left":
        return w.mul(w.times(z, half), cdf)
    if kind == "right":
        return w.mul(z, w.times(cdf, half))
    return w.times(w.mul(z, cdf), half)


ACTIVATIONS = (silu, silu, gelu, gelu_tanh)


def gated_mlp(w: Writer) -> dict[str, int]:
    """(act(x @ Wg + bg) * (x @ Wu + bu)) @ Wd + bd."""
    hidden = w.fixed(8, 16)
    x = w.input("x", w.fixed((w.b, w.s, hidden), (w.b, w.s, hidden), (w.b, hidden)))
    w.output(mlp(w, x, w.fixed(24, 40), biases=w.fixed(True, False, False)))
    return {"GatedMLP": 1}


def mlp(w: Writer, x: Value, inner: int, *, biases: bool = False) -> Value:
    """The gated MLP of x [..., H]."""
    hidden = x.shape[-1]
    gate_weight, up_weight = w.weight(hidden, inner), w.weight(hidden, inner)
    gate_bias, up_bias, down_bias = (w.weight(n) if biases else None for n in (inner, inner, hidden))
    source = x
    if w.mutates("other_up", "GatedMLP"):
        source = w.input("other", x.shape)
    if source is x and w.coin(0.3):
        gate, up = packed(w, x, gate_weight, up_weight, gate_bias, up_bias)
    else:
        gate, up = w.linear(x, gate_weight, gate_bias), w.linear(source, up_weight, up_bias)
    product = gated(w, gate, up, w.fixed(*ACTIVATIONS))
    if w.mutates("relu_after", "GatedMLP"):
        product = w.apply("Relu", product)
    if isinstance(x.shape[-2], int) and w.mutates("bias_row", "GatedMLP"):  # a bias of its own for every row
        product = w.add(product, w.constant(np.ones((x.shape[-2], 1)) * np.arange(inner), x.dtype))
    return w.linear(product, w.weight(inner, hidden), down_bias)


def packed(w: Writer, x: Value, gate_weight, up_weight, gate_bias, up_bias) -> tuple[Value, Value]:
    """Gate and up by one product; Phi-3 keeps the gate's columns first."""
    order = 1 if w.fixed(True, False) else -1
    weight = np.concatenate([gate_weight, up_weight][::order], axis=1)
    bias = None if gate_bias is None else np.concatenate([gate_bias, up_bias][::order])
    inner = gate_weight.shape[1]
    gate, up = w.split(w.linear(x, weight, bias), -1, [inner, inner])[::order]
    return (up, gate) if w.shifts_to("swapped") else (gate, up)
