"""SkipRMSNorm: sum = x + skip; y = RMSNorm(sum). The sum goes on as the next residual.

    x ----+
          + -- sum -- RMSNorm -- y
    skip -+     +------------------ (next residual)

x, skip: [..., D] float16|bfloat16|float32 of one shape and dtype; weight: [D].
Numerics: the sum is rounded to its dtype before it is normalised, as in the graph.
Refuses: a sum that broadcasts.
"""

from onnxfuse.dsl import attr, fusion, op, tensor

own = op.ns("onnxfuse")


@fusion(stage="residual", op="SkipRMSNorm", tolerance={"float32": 4e-6, "float16": 4e-3, "bfloat16": 3e-2})
def skip_rms_norm(x=tensor("... D"), skip=tensor("... D"), weight=tensor("D")):
    """Residual addition and the RMSNorm that follows it: sum = x + skip, y = RMSNorm(sum)."""
    total = x + skip
    return own.RMSNorm(total, weight, epsilon=attr("epsilon")), total


@fusion(stage="residual", op="SkipRMSNorm")
def microsoft_skip_rms_norm(x=tensor("... D"), skip=tensor("... D"), weight=tensor("D")):
    """Residual addition and RMSNorm already fused by ONNX Runtime's own tools (SkipSimplifiedLayerNormalization)."""
    norm = op.ns("com.microsoft").SkipSimplifiedLayerNormalization
    y, _, _, total = norm(x, skip, weight, epsilon=attr("epsilon"), outputs=4)
    return y, total


@fusion(stage="residual", op="SkipRMSNorm")
def microsoft_skip_rms_norm_last(x=tensor("... D"), skip=tensor("... D"), weight=tensor("D")):
    """The same before the output projection, where the sum is not wanted."""
    norm = op.ns("com.microsoft").SkipSimplifiedLayerNormalization
    return norm(x, skip, weight, epsilon=attr("epsilon"))


@skip_rms_norm.check
@microsoft_skip_rms_norm_last.check
@microsoft_skip_rms_norm.check
def same_shape(m):
    yield m.x.shape is not None and m.x.shape == m.skip.shape, "x is {m.x}, skip is {m.skip}: the sum broadcasts"


@microsoft_skip_rms_norm_last.check
def sum_unwanted(m):
    others = [value for value in m.root.outputs if value not in m.outputs]
    yield not any(value.uses() or value.is_graph_output() for value in others), "the sum is wanted, too"


@skip_rms_norm.rewrite
@microsoft_skip_rms_norm.rewrite
def fused(new, m):
    return new.SkipRMSNorm(m.x, m.skip, m.weight, epsilon=m.epsilon, outputs=2)


@microsoft_skip_rms_norm_last.rewrite
def fused_last(new, m):
    return new.SkipRMSNorm(m.x, m.skip, m.weight, epsilon=m.epsilon, outputs=2)[0]
