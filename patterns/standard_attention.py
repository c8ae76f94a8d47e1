"""Attention already written as ai.onnx Attention (opset 23), heads first: its cache and its repeated heads join it.

    past_key -- Concat(past, k) -- repeat_kv --+
    q ---------------------------------------- Attention -- (Transpose) -- (Reshape) -- y
    past_value -- Concat(past, v) -- repeat_kv +

Shapes and numerics: see attention.py. torch 2.13 writes it so, with K and V still repeated for every query head.
Refuses: is_causal where the number of keys is not that of the queries, which the operator's versions align differently.
"""

from onnxfuse import heads
from onnxfuse.dsl import any_of, attr, fusion, op, tensor
from onnxfuse.heads import for_every_query_head, heads_first, in_any_layout, with_past


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
    attributes = {
        name: attr() for name in ("softmax_precision", "qk_matmul_output_mode", "q_num_heads", "kv_num_heads")
    }
    context = op.Attention(
        heads_first(q, q_rows),
        for_every_query_head(keys),
        for_every_query_head(values),
        any_of(mask, None),
        scale=attr("factor"),
        is_causal=attr("is_causal"),
        softcap=attr("cap"),
        **attributes,
    )
    return in_any_layout(context), keys, values


standard_attention.check(heads.supported)


@standard_attention.check
def unambiguous(m):
    _, queries, keys = heads.scores_shape(m)
    yield not m.is_causal or queries == keys, f"is_causal with {queries} queries and {keys} keys"
    yield m.mask is None or heads.broadcasts(m.mask, m), "the mask is {m.mask}"


@standard_attention.rewrite
def fused(new, m):
    return heads.attended(new, m, (m.mask,), scale=m.factor or 0.0, softcap=m.cap or 0.0, causal=bool(m.is_causal))
