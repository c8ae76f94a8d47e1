"""Linear: y_i = h @ W_i (+ b_i), up to three projections of one h, with the residual addition and the norm before them.

    x ----+
          (+) -- sum -- (RMSNorm) -- h --+-- @ W_0 (+ b_0) -- y_0
    skip -+     +-- (next residual)      +-- @ W_1 (+ b_1) -- y_1
                                         +-- @ W_2 (+ b_2) -- y_2

x, skip: [..., K] float16|bfloat16|float32; W_i: [K, N_i], b_i: [N_i] and norm_weight: [K] constant, of x's dtype.
Seen in: the projections of queries, keys and values, the output projection, lm_head. At level block only: alone, a
MatMul is ONNX Runtime's.
Numerics: h may stay in float32, where the graph rounds it to x's dtype; one rounding of each product.
Refuses: a norm that anything else reads too (it would be computed twice); weights that a run computes.
"""

from onnxfuse.dsl import any_of, attr, constant, fusion, op, tensor

own = op.ns("onnxfuse")
TOLERANCE = {"float32": 1e-5, "float16": 6e-3, "bfloat16": 5e-2}


def takes_a_bias(value, facts):
    """Whether all that reads the product is the addition of a constant vector."""
    readers = [use.node for use in value.uses()]
    return len(readers) == 1 and readers[0].op_type == "Add" and any(map(facts.is_constant, readers[0].inputs))


def projection(h, weight, bias):
    """h @ weight, with its bias or without"""
    product = h @ weight
    whole = product.where(lambda value, facts: not takes_a_bias(value, facts), "a bias is added to the product")
    return any_of(product + bias, whole)


@fusion(stage="block", op="Linear", tolerance=TOLERANCE)
def skip_norm_projections(
    x=tensor("... K"),
    skip=tensor("... K"),
    norm_weight=constant("K"),
    weight_0=constant("K N0"),
    bias_0=constant("N0"),
    weight_1=constant("K N1"),
    bias_1=constant("N1"),
    weight_2=constant("K N2"),
    bias_2=constant("N2"),
):
    """Three projections of one norm behind a residual addition: queries, keys and values."""
    h, total = own.SkipRMSNorm(x, skip, norm_weight, epsilon=attr("epsilon"), outputs=2)
    return (
        projection(h, weight_0, bias_0),
        projection(h, weight_1, bias_1),
        projection(h, weight_2, bias_2),
        total,
    )


@fusion(stage="block", op="Linear", tolerance=TOLERANCE)
def norm_projections(
    x=tensor("... K"),
    norm_weight=constant("K"),
    weight_0=constant("K N0"),
    bias_0=constant("N0"),
    weight_1=constant("K N1"),
    bias_1=constant("N1"),
    weight_2=constant("K N2"),
    bias_2=constant("N2"),
):
    """Three projections of one norm: queries, keys and values of the first layer."""
    h = own.RMSNorm(x, norm_weight, epsilon=attr("epsilon"))
    return projection(h, weight_0, bias_0), projection(h, weight_1, bias_1), projection(h, weight_2, bias_2)


@fusion(stage="block", op="Linear", tolerance=TOLERANCE)
def skip_norm_projection(
    x=tensor("... K"),
    skip=tensor("... K"),
    norm_weight=constant("K"),
    weight_0=constant("K N0"),
    bias_0=constant("N0"),
):
    """One projection of a norm behind a residual addition whose sum nobody else wants: lm_head."""
    h, _ = own.SkipRMSNorm(x, skip, norm_weight, epsilon=attr("epsilon"), outputs=2)
    return projection(h, weight_0, bias_0)


@fusion(stage="block", op="Linear", tolerance=TOLERANCE)
def norm_projection(x=tensor("... K"), norm_weight=constant("K"), weight_0=constant("K N0"), bias_0=constant("N0")):
    """One projection of a norm: a packed one of queries, keys and values, or lm_head."""
    return projection(own.RMSNorm(x, norm_weight, epsilon=attr("epsilon")), weight_0, bias_0)


@fusion(stage="block", op="Linear", tolerance=TOLERANCE)
def projection_alone(x=tensor("... K"), weight_0=constant("K N0"), bias_0=constant("N0")):
    """A projection by itself: that of attention's output."""
    return projection(x, weight_0, bias_0)


FUSIONS = skip_norm_projections, norm_projections, skip_norm_projection, norm_projection, projection_alone


def supported(m):
    yield m.x.dtype in m.FLOATS, "x is {m.x.dtype}; kernels exist for {m.FLOATS}"
    for operand in operands(m):
        yield operand is None or operand.dtype == m.x.dtype, f"a weight is {operand}, x is {m.x}"
    norm = m.captured.get("norm_weight")
    yield norm is None or norm.dtype in ("float32", m.x.dtype), f"the norm's weight is {norm}, x is {m.x}"


@skip_norm_projection.check
def sum_unwanted(m):
    norm = next(node for node in m.nodes if node.op_type == "SkipRMSNorm")
    yield not (norm.outputs[1].uses() or norm.outputs[1].is_graph_output()), "the sum is wanted, too"


def operands(m):
    """weight_0, bias_0, weight_1, ...; None for what the match lacks."""
    return [m.captured.get(f"{kind}_{i}") for i in range(3) for kind in ("weight", "bias")]


def fused(new, m):
    captured = m.captured.get
    inputs = [m.x, captured("skip"), captured("norm_weight"), *operands(m)]
    epsilon = m.epsilon if captured("norm_weight") is not None else None
    return new.Linear(*inputs, epsilon=epsilon, outputs=len(m.outputs))


for made in FUSIONS:
    made.check(supported)
    made.rewrite(fused)
