"""Attention: softmax(q @ k^T * scale + mask) @ v, multi-head and grouped-query, with and without a KV cache.

    q ------------ (* s) ---------------------------+
    past_key --+                                    |
    k -- Concat(past, k) -- repeat_kv -- T -- (* s) -- MatMul -- (* scale) -- (softcap) -- (+ mask) -- Softmax --+
    past_value --+  |                                                                                          |
    v -- Concat(past, v) -- repeat_kv -------------------------------------------------------- MatMul ----------+
                   present                                                    y -- (Reshape) -- (Transpose) --+

q: [B, N, S, D], k: [B, K, L', D], v: [B, K, L', E] (or heads last but one, before their Transpose), N a multiple of K;
past: [B, K, P, D|E], or [B, P, K, D|E] joined before the Transpose. float16|bfloat16|float32.
Heads in the batch, [B*N, S, D], heads apart by group, [B, K, N/K, S, D], and Einsum have this form once normalised.
A mask is recognised by what it lets through (onnxfuse.masks): causal, sliding window, padding. Any other mask is passed
on as a bias, which is slower and right. The guard Where(IsNaN(p), 0, p) is what the operator does: a row that sees no
key gives zeros.
Paper: Vaswani et al. 2017, arXiv:1706.03762; grouped queries: Ainslie et al. 2023, arXiv:2305.13245.
Numerics: scores and weights stay in float32, never stored; the graph rounds both to q's dtype.
Refuses: a softmax over another axis, K and V heads repeated in another order than repeat_interleave, keys that come
before the past, a mask that broadcasts otherwise than [B|1, N|1, S|1, L].
"""

import math

from onnxfuse import heads, masks
from onnxfuse.dsl import any_of, fusion, maybe, op, scalar, tensor
from onnxfuse.fragments import softmax
from onnxfuse.heads import for_every_query_head, heads_first, in_any_layout, with_past
from onnxfuse.precision import rounds_no_further


def guarded(weights):
    """Weights in which a row without a visible key, NaN after the softmax, is zero."""
    return op.Where(op.IsNaN(weights), 0.0, weights) | weights


@fusion(stage="attention", op="Attention", tolerance={"float32": 2e-5, "float16": 1e-2, "bfloat16": 6e-2})
def attention(
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
    second_mask=tensor(),
    visible=tensor(),
    hidden=scalar(),
    q_factor=scalar(),
    q_divisor=scalar(),
    k_factor=scalar(),
    k_divisor=scalar(),
    factor=scalar(),
    divisor=scalar(),
    inner_factor=scalar(),
    inner_divisor=scalar(),
    cap=scalar(),
    cap_inverse=scalar(),
):
    """Attention: softmax(q @ k^T * scale + mask) @ v, grouped-query, with a KV cache or without."""
    keys = with_past(past_key, past_key_rows, k, k_rows)
    values = with_past(past_value, past_value_rows, v, v_rows)
    queries = maybe.Cast(heads_first(q, q_rows))

    all_keys = for_every_query_head(keys)
    turned = maybe.Cast(op.Transpose(all_keys, perm=[0, 1, 3, 2]))
    raw = op.MatMul(
        any_of(queries * q_factor, queries / q_divisor, queries),
        any_of(turned * k_factor, turned / k_divisor, op.Transpose(all_keys * k_factor, perm=[0, 1, 3, 2]), turned),
    )
    scaled = any_of(raw * factor, raw / divisor, raw)
    bounded = op.Tanh(any_of(scaled * inner_factor, scaled / inner_divisor, scaled))
    capped = any_of(bounded * cap, bounded / cap_inverse, scaled)
    scores = maybe.Cast(capped)
    masked = any_of(scores + mask + second_mask, scores + mask, op.Where(visible, scores, hidden), scores)
    weights = guarded(maybe.Cast(guarded(softmax(maybe.Cast(masked)))))
    context = op.MatMul(weights, maybe.Cast(for_every_query_head(values)))
    return in_any_layout(context), keys, values


attention.check(heads.supported)
attention.check(rounds_no_further)


@attention.check
def understood_scores(m):
    yield soft_cap(m) >= 0, f"the soft cap is {soft_cap(m)}, expected a positive number"
    yield m.hidden is None or m.hidden <= masks.HIDDEN, "hidden scores become {m.hidden}, which still counts"
    sizes = heads.scores_shape(m)
    for given in (m.mask, m.second_mask, m.visible):
        yield given is None or heads.broadcasts(given, m.N, sizes), f"the mask is {given}, the scores {sizes}"


@attention.rewrite
def fused(new, m):
    scale = product(m.q_factor, m.k_factor, m.factor, m.inner_factor)
    scale /= product(m.q_divisor, m.k_divisor, m.divisor, m.inner_divisor)
    cap = soft_cap(m)  # cap * tanh(z) is the operator's cap * tanh(score / cap) for the score z * cap
    return heads.attended(new, m, (m.mask, m.second_mask, m.visible), scale=scale * (cap or 1.0), softcap=cap)


def soft_cap(m):
    """What the scores' tanh is multiplied by, 0 without one."""
    return m.cap or (1 / m.cap_inverse if m.cap_inverse else 0.0)


def product(*factors):
    """Of those factors that the graph has."""
    return math.prod(factor for factor in factors if factor is not None)
