"""Attention: softmax(q @ k^T * scale + mask) @ v, multi-head and grouped-query, with and without a KV cache.

    q ------------ (* s) ---------------------------+
    past_key --+                                    |
    k -- Concat(past, k) -- repeat_kv -- T -- (* s) -- MatMul -- (* scale) -- (softcap) -- (+ mask) -- Softmax --+
    past_value --+  |                                                                                          |
    v -- Concat(past, v) -- repeat_kv -------------------------------------------------------- MatMul ----------+
                   present                                                    y -- (Reshape) -- (Transpose) --+

q: [B, N, S, D], k: [B, K, L', D], v: [B, K, L', E] (or heads last but one, before their Transpose), N a multiple of K;
past: [B, K, P, D|E]. float16|bfloat16|float32.
A mask is recognised by what it lets through (onnxfuse.masks): causal, sliding window, padding. Any other mask is passed
on as a bias, which is slower and right. The guard Where(IsNaN(p), 0, p) is what the operator does: a row that sees no
key gives zeros.
Paper: Vaswani et al. 2017, arXiv:1706.03762; grouped queries: Ainslie et al. 2023, arXiv:2305.13245.
Numerics: scores and weights stay in float32, never stored; the graph rounds both to q's dtype.
Refuses: a softmax over another axis, K and V heads repeated in another order than repeat_interleave, keys that come
before the past, a mask that broadcasts otherwise than [B|1, N|1, S|1, L].
"""

from __future__ import annotations

import numpy as np

from onnxfuse import masks
from onnxfuse.dsl import any_of, fusion, maybe, op, scalar, tensor

HEADS_FIRST = [0, 2, 1, 3]  # [B, S, N, D] <-> [B, N, S, D]


def repeats_each_head(value, facts):
    """Whether Reshape(Expand(Unsqueeze(x, 2))) [B, K*r, L, D] repeats each of x's heads r times."""
    wide = value.producer().inputs[0]
    x = wide.producer().inputs[0].producer().inputs[0]
    shapes = [facts.shape(v) for v in (x, wide, value)]
    if any(s is None for s in shapes) or [len(s) for s in shapes] != [4, 5, 4]:
        return False
    x, wide, out = shapes
    return wide == (*x[:2], wide[2], *x[2:]) and out == (x[0], x[1] * wide[2], *x[2:])


def gathers_each_head(value, facts):
    """Whether Gather(x, indices, axis=1) repeats each of x's heads the same number of times."""
    node = value.producer()
    indices, shape = facts.constant(node.inputs[1]), facts.shape(node.inputs[0])
    if indices is None or shape is None or indices.ndim != 1 or not isinstance(shape[1], int):
        return False
    return indices.size % shape[1] == 0 and (indices == np.repeat(np.arange(shape[1]), indices.size // shape[1])).all()


def for_every_query_head(x):
    """x [B, K, L, D] with every head repeated for its group of query heads, or as it is."""
    wide = op.Expand(op.Unsqueeze(x, axes=[2]), ...)
    expanded = op.Reshape(wide, ...).where(repeats_each_head, "the heads are not repeated one by one")
    gathered = op.Gather(x, ..., axis=1).where(gathers_each_head, "the heads are not repeated one by one")
    return any_of(expanded, gathered, x)


def heads_first(x, x_rows):
    """x [B, N, S, D], or x_rows [B, S, N, D] transposed to it."""
    return op.Transpose(x_rows, perm=HEADS_FIRST) | x


def guarded(weights):
    """Weights in which a row without a visible key, NaN after the softmax, is zero."""
    return op.Where(op.IsNaN(weights), 0.0, weights) | weights


def merges_heads(value, facts):
    """Whether the Reshape takes [B, S, N, E] to [B, S, N*E]."""
    rows, out = facts.shape(value.producer().inputs[0]), facts.shape(value)
    if rows is None or out is None:
        return False
    return len(out) == 3 and out == (rows[0], rows[1], rows[2] * rows[3])


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
    mask=tensor(),
    second_mask=tensor(),
    visible=tensor(),
    hidden=scalar(),
    q_factor=scalar(),
    q_divisor=scalar(),
    k_factor=scalar(),
    factor=scalar(),
    divisor=scalar(),
    cap=scalar(),
    cap_factor=scalar(),
):
    """Attention: softmax(q @ k^T * scale + mask) @ v, grouped-query, with a KV cache or without."""
    new_keys, new_values = heads_first(k, k_rows), heads_first(v, v_rows)
    keys = op.Concat(past_key, new_keys, axis=2) | new_keys
    values = op.Concat(past_value, new_values, axis=2) | new_values
    queries = maybe.Cast(heads_first(q, q_rows))

    all_keys = for_every_query_head(keys)
    turned = maybe.Cast(op.Transpose(all_keys, perm=[0, 1, 3, 2]))
    raw = op.MatMul(
        any_of(queries * q_factor, queries / q_divisor, queries),
        any_of(turned * k_factor, op.Transpose(all_keys * k_factor, perm=[0, 1, 3, 2]), turned),
    )
    scaled = any_of(raw * factor, raw / divisor, raw)
    capped = any_of(op.Tanh(scaled / cap) * cap, op.Tanh(scaled * cap_factor) * cap, scaled)
    scores = maybe.Cast(capped)
    masked = any_of(scores + mask + second_mask, scores + mask, op.Where(visible, scores, hidden), scores)
    weights = guarded(maybe.Cast(guarded(op.Softmax(maybe.Cast(masked), axis=-1))))
    context = op.MatMul(weights, maybe.Cast(for_every_query_head(values)))
    rows = op.Transpose(context, perm=HEADS_FIRST)
    merged = op.Reshape(rows, ...).where(merges_heads, "the Reshape does not merge the heads")
    return any_of(merged, rows, context), keys, values


@attention.check
def supported(m):
    yield m.facts.shape(m.outputs[0]) is not None, "the shape of the result is unknown"
    sizes = (m.N, m.K, m.D, m.E)
    yield all(isinstance(s, int) for s in sizes), f"heads and head sizes are {sizes}, expected known numbers"
    yield m.N % m.K == 0, "{m.N} query heads do not divide into groups for {m.K} key heads"
    yield dtype(m) in m.FLOATS, "the values are {m.v}{m.v_rows}; kernels exist for {m.FLOATS}"
    yield (
        m.cap_factor is None or abs(m.cap * m.cap_factor - 1) < 1e-5,
        "the soft cap scales by {m.cap} and {m.cap_factor}",
    )
    yield m.hidden is None or m.hidden <= masks.HIDDEN, "hidden scores become {m.hidden}, which still counts"
    yield (m.past_key is None) == (m.past_value is None), "only one of key and value has a past"
    for past in (m.past_key, m.past_value):
        yield past is None or past.dtype == dtype(m), f"the past is {past}, the values are {dtype(m)}"
    for given in (m.mask, m.second_mask, m.visible):
        yield given is None or (given.rank is not None and given.rank <= 4), f"the mask is {given}"


@attention.rewrite
def fused(new, m):
    q = flat_rows(new, m.q, m.q_rows, m.N * m.D, dtype(m))
    k = flat_rows(new, m.k, m.k_rows, m.K * m.D, dtype(m))
    v = flat_rows(new, m.v, m.v_rows, m.K * m.E, dtype(m))
    closed, bias = understood(new, m)
    wants_present = m.past_key is not None or any(read_elsewhere(value, m) for value in m.outputs[1:])
    results = new.Attention(
        q,
        k,
        v,
        m.past_key,
        m.past_value,
        closed.padding,
        bias,
        num_heads=m.N,
        kv_num_heads=m.K,
        scale=scale(m),
        causal=int(closed.causal),
        window=closed.window,
        softcap=m.cap or 0.0,
        outputs=3 if wants_present else 1,
    )
    y, *present = results if wants_present else (results,)
    return laid_out(new, m, y), *(present or (None, None))


def flat_rows(new, first, rows, width, dtype):
    """The captured tensor as [B, S, N*D]."""
    value = new.onnx.Transpose(first, perm=HEADS_FIRST) if first is not None else rows.value
    flat = new.onnx.Reshape(value, np.array([0, 0, width]))
    return flat if (first or rows).dtype == dtype else new.onnx.Cast(flat, to=dtype)


def dtype(m):
    """The dtype to compute in: that of the values, to which torch's autocast brings queries and keys as well."""
    return (m.v or m.v_rows).dtype


def laid_out(new, m, y):
    """y [B, S, N*E] in the layout of the value it replaces, and in its dtype."""
    root = m.root
    wanted = m.facts.dtype(m.outputs[0])
    if wanted != m.facts.dtype((m.v or m.v_rows).value):
        y = new.onnx.Cast(y, to=int(wanted))
    if root.op_type == "Reshape":
        return y
    y = new.onnx.Reshape(y, np.array([0, 0, m.N, m.E]))
    return y if root.op_type == "Transpose" else new.onnx.Transpose(y, perm=HEADS_FIRST)


def read_elsewhere(value, m):
    """Whether anything outside the match needs a value that it computes inside."""
    if value in m.inputs:
        return False
    return value.is_graph_output() or any(use.node not in m.nodes for use in value.uses())


def scale(m):
    """The factor on the scores: the product of those before and after the MatMul."""
    factor = (m.q_factor or 1.0) * (m.k_factor or 1.0) * (m.factor or 1.0)
    return factor / ((m.q_divisor or 1.0) * (m.divisor or 1.0))


def understood(new, m):
    """The masks' closed form, and what is left of them as a bias [B|1, N|1, S|1, L] (None: nothing)."""
    closed, rest = masks.Mask(), []
    for captured in (m.mask, m.second_mask, m.visible):
        if captured is None:
            continue
        found = masks.recognise(captured.value, scores_shape(m), m.facts)
        both = closed & found if found is not None else None
        if both is None:
            rest.append(captured)
        else:
            closed = both
    if not rest:
        return closed, None
    terms = [additive(new, captured) for captured in rest]
    bias = terms[0] if len(terms) == 1 else new.onnx.Add(*terms)
    rank = max(captured.rank for captured in rest)
    return closed, bias if rank == 4 else new.onnx.Unsqueeze(bias, np.arange(4 - rank))


def scores_shape(m):
    """B, S and L of the scores."""
    query, keys = m.facts.shape((m.q or m.q_rows).value), m.facts.shape(m.outputs[1])
    return query[0], query[2] if m.q is not None else query[1], keys[2]


def additive(new, captured):
    """A boolean mask as what it adds to the scores."""
    if captured.dtype != "bool":
        return captured.value
    return new.onnx.Where(captured.value, np.float32(0), np.float32(-np.inf))
