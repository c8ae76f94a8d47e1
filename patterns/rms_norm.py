"""RMSNorm: y = x / sqrt(mean(x^2) + eps) * weight over the last axis.

    x --(Cast f32)--+-- square -- mean -- + eps -- sqrt --+
                    +------------------ / ----------------+--(Cast back)-- * weight --(Cast)-- y

x: [..., D] float16|bfloat16|float32; weight: [D] same dtype or float32; eps: none, or a constant in units of x squared.
Seen in: Llama, Mistral, Qwen, Gemma exports of every opset; as ai.onnx RMSNormalization (opset 23) and as ONNX
Runtime's SimplifiedLayerNormalization. Paper: Zhang & Sennrich 2019, arXiv:1910.07467.
Numerics: sums in float32 and one rounding to the result's dtype, where the graph rounds up to three times.
Refuses: eps computed at run time or of more than one element; a weight that differs along other axes; an x that is
centred by its mean, which makes it LayerNorm: ONNX Runtime fuses that whole.
"""

import math

from onnxfuse.dsl import Refuse, any_of, attr, fusion, maybe, op, scalar, tensor
from onnxfuse.fragments import over_root, square
from onnxfuse.precision import rounds_no_further


def mean_of_squares(h, factor, count):
    """mean(h^2) over the last axis, kept as an axis of size one; a sum is scaled by a factor or divided by a count."""
    last = {"axes": [-1], "keepdims": 1}
    total = any_of(op.ReduceSum(square(h), **last), op.ReduceSumSquare(h, **last), square(op.ReduceL2(h, **last)))
    return any_of(op.ReduceMean(square(h), **last), total * factor, total / count)


@fusion(stage="norm", op="RMSNorm", tolerance={"float32": 4e-6, "float16": 4e-3, "bfloat16": 3e-2})
def rms_norm(x=tensor("... D"), weight=tensor("D"), eps=scalar(), factor=scalar(), count=scalar()):
    """RMSNorm: y = x / sqrt(mean(x^2) + eps) * weight."""
    h, gain = maybe.Cast(x), maybe.Cast(weight)
    mean = mean_of_squares(h, factor, count)
    variance = maybe.Cast(mean + eps | mean)  # torch's exporter takes an eps of 1e-8 for zero
    y = any_of(
        maybe.Cast(over_root(h, variance)) * gain,
        over_root(h * gain, variance),
        h * over_root(gain, variance),
    )
    return maybe.Cast(y)


@fusion(stage="norm", op="RMSNorm")
def standard_rms_norm(x=tensor("... D"), weight=tensor("D")):
    """RMSNorm already written as ai.onnx RMSNormalization or as ONNX Runtime's SimplifiedLayerNormalization."""
    standard = op.RMSNormalization(x, weight, axis=-1, epsilon=attr("epsilon"), stash_type=attr())
    return standard | op.SimplifiedLayerNormalization(x, weight, axis=-1, epsilon=attr("epsilon"), stash_type=attr())


rms_norm.check(rounds_no_further)


@rms_norm.check
def supported(m):
    yield m.x.dtype in m.FLOATS, "x is {m.x.dtype}; kernels exist for {m.FLOATS}"
    yield m.weight.dtype in m.FLOATS, "weight is {m.weight.dtype}; kernels exist for {m.FLOATS}"
    yield not is_centred(m.x.value), "x is {m.x}, a value less its mean: expected RMSNorm, found LayerNorm"
    yield m.x.shape is not None, "x is {m.x}: its shape is unknown"
    yield m.facts.shape(m.outputs[0]) == m.x.shape, "x is {m.x}: it broadcasts against the weight"
    factor = m.factor or (1 / m.count if m.count else None)
    yield factor is None or math.isclose(factor * m.D, 1, rel_tol=1e-3), f"the sum is scaled by {factor}, not 1 / {m.D}"
    yield m.eps is None or (m.eps >= 0 and math.isfinite(m.eps)), "eps is {m.eps}; expected a finite number >= 0"


@rms_norm.rewrite
def fused(new, m):
    return normed(new, m, m.eps or 0.0)


@standard_rms_norm.rewrite
def fused_standard(new, m):
    return normed(new, m, m.epsilon)


def is_centred(x):
    """Whether x is v - mean(v)."""
    node = x.producer()
    mean = node.inputs[1].producer() if node is not None and node.op_type == "Sub" else None
    return mean is not None and mean.op_type == "ReduceMean" and mean.inputs[0] is node.inputs[0]


def normed(new, m, epsilon):
    """The operator, which gives x's dtype and takes weights of that or float32; Casts where the graph mixes others."""
    result = m.facts.dtype(m.outputs[0])
    if result is None:
        raise Refuse("the result's dtype is unknown")
    x, weight = m.x.value, m.weight.value
    if m.x.dtype != "float32" and result != m.facts.dtype(x):
        x = new.onnx.Cast(x, to="float32")  # the graph went on in a wider dtype than x's
    wide = m.x.dtype == "float32" or x is not m.x.value
    if wide and m.weight.dtype != "float32":
        weight = new.onnx.Cast(weight, to="float32")
    y = new.RMSNorm(x, weight, epsilon=epsilon)
    return y if not wide or result.name == "FLOAT" else new.onnx.Cast(y, to=int(result))
