"""Attention already written as ai.onnx Attention (opset 23), heads first: its cache and its repeated heads join it.

    past_key -- Concat(past, k) -- repeat_kv --+
    q ---------------------------------------- Attention -- (Transpose) -- (Reshape) -- y
    past_value -- Concat(past, v) -- repeat_kv +

or with the cache as the operator's own inputs past_key, past_value and outputs present_key, present_value.
Shapes and numerics: see attention.py. torch 2.13 writes the first, with K and V still repeated for every query head.
Refuses: is_causal where the number of keys is not that of the queries and the operator knows of no past, which its
versions align differently.
"""

from onnxfuse import heads
from onnxfuse.dsl import any_of, attr, fusion, op, tensor
from onnxfuse.heads import for_every_query_head, heads_first, in_any_layout, with_past

ATTRIBUTES = {
    "scale": attr("factor"),
    "is_causal": attr("is_causal"),
    "softcap": attr("cap"),
    **{name: attr() for name in ("softmax_precision", "qk_matmul_output_mode", "q_num_heads", "kv_num_heads")},
}


@fusion(stage="attention", op="Attention", tolerance={"float32": 2e-5, "float16": 1e-2, "bfloat16": 6e-2})
def standard_attention(
    q=tensor("B N S D"),
    q_rows=tensor("B S N D"),
    k=tensor("B K _ D"),
    k_rows=tensor("B _ K D"),
    v=tensor("B K _ E"),
    v_rows=tensor("B _ K E"),
    past_key=tensor("B K P D"),
    past_value=tensor("B K P E"),
    past_key_rows=tensor("B P K D"),
    past_value_rows=tensor("B P K E"),
    mask=tensor(),
):
    """Attention written as ai.onnx Attention, with its KV cache and the repetition of its heads."""
    keys = with_past(past_key, past_key_rows, k, k_rows)
    values = with_past(past_value, past_value_rows, v, v_rows)
    rows = (for_every_query_head(keys), for_every_query_head(values))
    context = op.Attention(heads_first(q, q_rows), *rows, any_of(mask, None), **ATTRIBUTES)
    return in_any_layout(context), keys, values


@fusion(stage="attention", op="Attention", tolerance={"float32": 2e-5, "float16": 1e-2, "bfloat16": 6e-2})
def standard_attention_with_cache(
    q=tensor("B N S D"),
    q_rows=tensor("B S N D"),
    k=tensor("B K _ D"),
    k_rows=tensor("B _ K D"),
    v=tensor("B K _ E"),
    v_rows=tensor("B _ K E"),
    past_key=tensor("B K P D"),
    past_value=tensor("B K P E"),
    mask=tensor(),
):
    """Attention written as ai.onnx Attention, which joins past and new keys and values itself."""
    rows = (heads_first(x, x_rows) for x, x_rows in ((q, q_rows), (k, k_rows), (v, v_rows)))
    context, keys, values = op.Attention(*rows, any_of(mask, None), past_key, past_value, outputs=3, **ATTRIBUTES)
    return in_any_layout(context), keys, values


standard_attention.check(heads.supported)
standard_attention_with_cache.check(heads.supported)


@standard_attention.check
def unambiguous(m):
    _, queries, keys = heads.scores_shape(m)
    yield not m.is_causal or queries == keys, f"is_causal with {queries} queries and {keys} keys"


@standard_attention.check
@standard_attention_with_cache.check
def understood_mask(m):
    yield m.mask is None or heads.broadcasts(m.mask, m.N, heads.scores_shape(m)), "the mask is {m.mask}"


@standard_attention.rewrite
@standard_attention_with_cache.rewrite
def fused(new, m):
    return heads.attended(new, m, (m.mask,), scale=m.factor or 0.0, softcap=m.cap or 0.0, causal=bool(m.is_causal))
