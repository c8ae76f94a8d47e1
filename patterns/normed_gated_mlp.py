"""GatedMLP with the norm before it, and the residual addition before that: half a layer in one operator.

    x ----+
          (+) -- sum -- RMSNorm -- GatedMLP -- y
    skip -+     +------------------ (next residual)

Shapes: as GatedMLP's and SkipRMSNorm's, see custom_ops. At level block only.
Numerics: the normed x may stay in float32, where the graph rounds it to its dtype.
Refuses: a norm that anything else reads too.
"""

from onnxfuse.dsl import any_of, attr, fusion, op, tensor

own = op.ns("onnxfuse")
TOLERANCE = {"float32": 2e-5, "float16": 1e-2, "bfloat16": 6e-2}
WEIGHTS = "gate_weight", "up_weight", "down_weight", "gate_bias", "up_bias", "down_bias"


def mlp(h, gate_weight, up_weight, down_weight, *biases):
    """The gated MLP of h."""
    options = (any_of(bias, None) for bias in biases)
    return own.GatedMLP(h, gate_weight, up_weight, down_weight, *options, activation=attr("activation"))


@fusion(stage="block", op="GatedMLP", tolerance=TOLERANCE)
def skip_norm_gated_mlp(
    x=tensor("... H"),
    skip=tensor("... H"),
    norm_weight=tensor("H"),
    gate_weight=tensor(),
    up_weight=tensor(),
    down_weight=tensor(),
    gate_bias=tensor(),
    up_bias=tensor(),
    down_bias=tensor(),
):
    """Residual addition, RMSNorm and gated MLP; the sum goes on as the next residual."""
    h, total = own.SkipRMSNorm(x, skip, norm_weight, epsilon=attr("epsilon"), outputs=2)
    return mlp(h, gate_weight, up_weight, down_weight, gate_bias, up_bias, down_bias), total


@fusion(stage="block", op="GatedMLP", tolerance=TOLERANCE)
def norm_gated_mlp(
    x=tensor("... H"),
    norm_weight=tensor("H"),
    gate_weight=tensor(),
    up_weight=tensor(),
    down_weight=tensor(),
    gate_bias=tensor(),
    up_bias=tensor(),
    down_bias=tensor(),
):
    """RMSNorm and gated MLP."""
    h = own.RMSNorm(x, norm_weight, epsilon=attr("epsilon"))
    return mlp(h, gate_weight, up_weight, down_weight, gate_bias, up_bias, down_bias)


@skip_norm_gated_mlp.rewrite
@norm_gated_mlp.rewrite
def fused(new, m):
    captured = m.captured.get
    inputs = [m.x, *map(captured, WEIGHTS), captured("skip"), captured("norm_weight")]
    return new.GatedMLP(*inputs, activation=m.activation, epsilon=m.epsilon, outputs=len(m.outputs))
