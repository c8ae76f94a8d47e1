"""Attention already written as ONNX Runtime's MultiHeadAttention, as its own tools and onnxscript's write it.

    q, k, v, (attention_bias), (past_key, past_value) -- MultiHeadAttention -- y, (present_key, present_value)

q: [B, S, N*D], k: [B, L', N*D], v: [B, L', N*E]; past: [B, N, P, D|E]; float16|bfloat16|float32. Any mask is an added
bias there; what it lets through is recognised (onnxfuse.masks) and the rest passed on.
Refuses: q, k or v packed or heads first, biases of the projections, a key_padding_mask, the cache as one buffer;
unidirectional where the number of keys is not that of the queries and the operator knows of no past.
"""

from onnxfuse import heads
from onnxfuse.dsl import any_of, attr, fusion, op, tensor

TOLERANCE = {"float32": 2e-5, "float16": 1e-2, "bfloat16": 6e-2}
ATTRIBUTES = {
    "num_heads": attr("heads"),
    "scale": attr("factor"),
    "unidirectional": attr("is_causal"),
    "mask_filter_value": attr(),
}
microsoft = op.ns("com.microsoft")


@fusion(stage="attention", op="Attention", tolerance=TOLERANCE)
def microsoft_attention(q=tensor("B S _"), k=tensor("B L _"), v=tensor("B L _"), mask=tensor()):
    """Attention written as ONNX Runtime's MultiHeadAttention, without a cache."""
    return microsoft.MultiHeadAttention(q, k, v, None, None, any_of(mask, None), **ATTRIBUTES)


@fusion(stage="attention", op="Attention", tolerance=TOLERANCE)
def microsoft_attention_with_cache(
    q=tensor("B S _"),
    k=tensor("B L _"),
    v=tensor("B L _"),
    mask=tensor(),
    past_key=tensor("B _ P _"),
    past_value=tensor("B _ P _"),
):
    """Attention written as ONNX Runtime's MultiHeadAttention, which joins past and new keys and values itself."""
    inputs = (q, k, v, None, None, any_of(mask, None), past_key, past_value)
    return microsoft.MultiHeadAttention(*inputs, **ATTRIBUTES, outputs=3)


@microsoft_attention.check
@microsoft_attention_with_cache.check
def supported(m):
    yield m.v.dtype in m.FLOATS, "the values are {m.v}; kernels exist for {m.FLOATS}"
    for name, rows in m.captured.items():
        known = rows.shape is not None and None not in rows.shape
        yield known or name == "mask", f"{rows} has sizes of which nothing is known"
    widths = [rows.shape[-1] for rows in (m.q, m.k, m.v)]
    divide = all(isinstance(width, int) and width % m.heads == 0 for width in widths)
    yield divide, f"q, k and v have {widths} features, expected known multiples of {m.heads} heads"
    yield widths[0] == widths[1], f"queries have {widths[0]} features, keys {widths[1]}"
    yield m.mask is None or heads.broadcasts(m.mask, m.heads, scores(m)), "the mask is {m.mask}"


@microsoft_attention.check
def unambiguous(m):
    yield not m.is_causal or m.S == m.L, "unidirectional with {m.S} queries and {m.L} keys"


@microsoft_attention.rewrite
@microsoft_attention_with_cache.rewrite
def fused(new, m):
    closed, padding, bias = heads.understood(new, (m.mask,), scores(m), m.facts)
    cache = [m.captured.get(name) for name in ("past_key", "past_value")]
    return new.Attention(
        *(m.q, m.k, m.v, *cache, padding, bias),
        num_heads=m.heads,
        kv_num_heads=m.heads,
        scale=m.factor or 0.0,
        causal=int(closed.causal or m.is_causal == 1),
        window=closed.window,
        softcap=0.0,
        outputs=len(m.outputs),
    )


def scores(m):
    """B, S and L of the scores, L with the past."""
    past = m.captured.get("past_key")
    return m.B, m.S, m.L + (0 if past is None else past.shape[2])
