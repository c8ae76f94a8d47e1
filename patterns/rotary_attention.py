"""Attention with the rotary embedding of its queries and keys: what is projected goes into one operator.

    q -- RotaryEmbedding(cos, sin) --+
    k -- RotaryEmbedding(cos, sin) --+-- Attention -- y, present_key, present_value
    v -------------------------------+

Shapes: as Attention's and RotaryEmbedding's, see custom_ops. At level block only.
Numerics: the rotated queries and keys may stay in float32, where the graph rounds them to their dtype.
Refuses: queries and keys turned by different tables or in different ways; rotated values that anything else reads.
"""

from onnxfuse.dsl import any_of, attr, fusion, op, tensor

own = op.ns("onnxfuse")
TOLERANCE = {"float32": 2e-5, "float16": 1e-2, "bfloat16": 6e-2}


def attention(q, k, v, cos, sin, options, outputs):
    """Attention over what the tables turned; `options` are its inputs that may be absent."""
    alike = {"interleaved": attr("interleaved"), "rotary_dim": attr("rotary_dim")}
    return own.Attention(
        own.RotaryEmbedding(q, cos, sin, num_heads=attr("query_heads"), **alike),
        own.RotaryEmbedding(k, cos, sin, num_heads=attr("key_heads"), **alike),
        v,
        *(any_of(option, None) for option in options),
        attributes=...,
        outputs=outputs,
    )


@fusion(stage="block", op="Attention", tolerance=TOLERANCE)
def rotary_attention(
    q=tensor(),
    k=tensor(),
    v=tensor(),
    cos=tensor(),
    sin=tensor(),
    past_key=tensor(),
    past_value=tensor(),
    mask=tensor(),
    bias=tensor(),
):
    """Attention with a KV cache, and the rotary embedding before it."""
    return attention(q, k, v, cos, sin, (past_key, past_value, mask, bias), outputs=3)


@fusion(stage="block", op="Attention", tolerance=TOLERANCE)
def rotary_attention_without_cache(
    q=tensor(),
    k=tensor(),
    v=tensor(),
    cos=tensor(),
    sin=tensor(),
    past_key=tensor(),
    past_value=tensor(),
    mask=tensor(),
    bias=tensor(),
):
    """Attention whose present nobody wants, and the rotary embedding before it."""
    return attention(q, k, v, cos, sin, (past_key, past_value, mask, bias), outputs=1)


@rotary_attention.check
@rotary_attention_without_cache.check
def same_heads(m):
    node = m.root
    heads, kv_heads = node.attributes["num_heads"].value, node.attributes["kv_num_heads"].value
    yield m.query_heads in (None, 0, heads), f"{m.query_heads} heads are turned, {heads} attend"
    yield m.key_heads in (None, 0, kv_heads), f"{m.key_heads} heads of keys are turned, {kv_heads} are attended"
    others = [value for value in node.outputs if value not in m.outputs]
    yield not any(value.uses() or value.is_graph_output() for value in others), "the present is wanted, too"


@rotary_attention.rewrite
@rotary_attention_without_cache.rewrite
def fused(new, m):
    attributes = {name: attribute.value for name, attribute in m.root.attributes.items()}
    options = [m.captured.get(name) for name in ("past_key", "past_value", "mask", "bias")]
    how = {"interleaved": m.interleaved, "rotary_dim": m.rotary_dim}
    return new.Attention(m.q, m.k, m.v, *options, m.cos, m.sin, **attributes, **how, outputs=len(m.outputs))
