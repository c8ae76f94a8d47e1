"""Heads in patterns and rewrites of attention: their layouts, their repetition for grouped queries, and the operator.

A match of an attention fusion holds q, k, v as [B, N, S, D] or, before the Transpose that puts the heads first, as
`q_rows`, `k_rows`, `v_rows` [B, S, N, D]; its outputs are the result, all keys and all values.
"""

from __future__ import annotations

import numpy as np

from onnxfuse import masks
from onnxfuse.dsl import any_of, op

HEADS_FIRST = [0, 2, 1, 3]  # [B, S, N, D] <-> [B, N, S, D]
PAST_KEY, MASK, BIAS = 3, 5, 6  # inputs of onnxfuse Attention


def given(node, index):
    """The node's input, None where it is left out."""
    return node.inputs[index] if index < len(node.inputs) else None


def repeats_each_head(value, facts):
    """Whether Reshape(Expand(Unsqueeze(x))) [B, K*r, L, D] repeats each of x's heads r times."""
    wide = value.producer().inputs[0]
    apart = wide.producer().inputs[0]
    x = apart.producer().inputs[0]
    shapes = [facts.shape(v) for v in (x, apart, wide, value)]
    if any(s is None for s in shapes) or [len(s) for s in shapes] != [4, 5, 5, 4]:
        return False
    x, apart, wide, out = shapes
    if apart != (*x[:2], 1, *x[2:]):  # an axis before the heads repeats all of them in turn
        return False
    return wide == (*x[:2], wide[2], *x[2:]) and out == (x[0], x[1] * wide[2], *x[2:])


def gathers_each_head(value, facts):
    """Whether Gather(x, indices, axis=1) repeats each of x's heads the same number of times."""
    node = value.producer()
    indices, shape = facts.constant(node.inputs[1]), facts.shape(node.inputs[0])
    if indices is None or shape is None or indices.ndim != 1 or not isinstance(shape[1], int):
        return False
    return indices.size % shape[1] == 0 and (indices == np.repeat(np.arange(shape[1]), indices.size // shape[1])).all()


def repeats_the_only_head(value, facts):
    """Whether Expand(x) [B, r, L, D] repeats the one head of x [B, 1, L, D]."""
    shape, out = facts.shape(value.producer().inputs[0]), facts.shape(value)
    if shape is None or out is None or len(shape) != 4:
        return False
    return shape[1] == 1 and out == (shape[0], out[1], *shape[2:])


def for_every_query_head(x):
    """x [B, K, L, D] with every head repeated for its group of query heads, or as it is."""
    otherwise = "the heads are not repeated one by one"
    wide = op.Expand(op.Unsqueeze(x, ...), ...)
    expanded = op.any("Reshape", "Squeeze")(wide, ...).where(repeats_each_head, otherwise)
    gathered = op.Gather(x, ..., axis=1).where(gathers_each_head, otherwise)
    alone = op.Expand(x, ...).where(repeats_the_only_head, otherwise)
    return any_of(expanded, gathered, alone, x)


def heads_first(x, x_rows):
    """x [B, N, S, D], or x_rows [B, S, N, D] transposed to it."""
    return op.Transpose(x_rows, perm=HEADS_FIRST) | x


def merges_heads(value, facts):
    """Whether the Reshape takes [B, S, N, E] to [B, S, N*E]."""
    rows, out = facts.shape(value.producer().inputs[0]), facts.shape(value)
    if rows is None or out is None:
        return False
    return len(out) == 3 and out == (rows[0], rows[1], rows[2] * rows[3])


def read_by_transposes(value, facts):
    """Whether nothing but Transposes reads the value."""
    return not value.is_graph_output() and all(use.node.op_type == "Transpose" for use in value.uses())


def with_past(past, past_rows, new, new_rows):
    """The cache [B, K, P, D] followed by the new keys or values, that of [B, P, K, D], or the new ones alone."""
    rows = op.Concat(past_rows, new_rows, axis=1).where(
        read_by_transposes, "the rows with their past are read elsewhere"
    )
    fresh = heads_first(new, new_rows)
    return any_of(op.Concat(past, fresh, axis=2), op.Transpose(rows, perm=HEADS_FIRST), fresh)


def in_any_layout(context):
    """The result [B, N, S, E], transposed to [B, S, N, E], or merged to [B, S, N*E]: the latest that is there."""
    rows = op.Transpose(context, perm=HEADS_FIRST)
    merged = op.Reshape(rows, ...).where(merges_heads, "the Reshape does not merge the heads")
    return any_of(merged, rows, context)


def supported(m):
    """The conditions that every attention fusion checks."""
    yield m.facts.shape(m.outputs[0]) is not None, "the shape of the result is unknown"
    sizes = (m.N, m.K, m.D, m.E)
    yield all(isinstance(s, int) for s in sizes), f"heads and head sizes are {sizes}, expected known numbers"
    yield m.N % m.K == 0, "{m.N} query heads do not divide into groups for {m.K} key heads"
    yield dtype(m) in m.FLOATS, f"the values are {dtype(m)}; kernels exist for {m.FLOATS}"
    yield (m.past_key is None) == (m.past_value is None), "only one of key and value has a past"
    key_rows, value_rows = rows_of_past(m)
    yield (key_rows is None) == (value_rows is None), "only one of key and value has a past of rows"
    for past in (m.past_key, m.past_value, key_rows, value_rows):
        yield past is None or past.dtype == dtype(m), f"the past is {past}, the values are {dtype(m)}"


def rows_of_past(m):
    """The captured past as [B, P, K, D] and [B, P, K, E], None where there is none or the fusion has no such form."""
    return getattr(m, "past_key_rows", None), getattr(m, "past_value_rows", None)


def broadcasts(mask, heads, sizes):
    """Whether the mask is [B|1, N|1, S|1, L], or the last axes of that, for so many heads and `sizes` B, S, L."""
    if mask.shape is None or not 1 <= mask.rank <= 4:
        return False
    _, queries, keys = sizes
    shape = (1,) * (4 - mask.rank) + tuple(mask.shape)
    known = [s for s in zip(shape[1:], (heads, queries, keys), strict=True) if all(isinstance(e, int) for e in s)]
    return shape[3] != 1 and all(a in (1, b) for a, b in known)


def attended(new, m, given, *, scale, softcap=0.0, causal=False):
    """The operator on [B, S, N*D], with presents where the graph has a past or reads keys and values elsewhere.

    A past of rows [B, P, K, D] has no present, nor have keys or values that the graph holds in another dtype than it
    multiplies them in: whoever else reads them has them computed as before.
    """
    q = flat_rows(new, m.q, m.q_rows, m.N * m.D, dtype(m))
    k = flat_rows(new, m.k, m.k_rows, m.K * m.D, dtype(m))
    v = flat_rows(new, m.v, m.v_rows, m.K * m.E, dtype(m))
    closed, padding, bias = understood(new, given, scores_shape(m), m.facts)
    past_rows = rows_of_past(m)
    of_rows = past_rows[0] is not None
    provided = [m.facts.dtype(value) == m.facts.dtype((m.v or m.v_rows).value) for value in m.outputs[1:]]
    elsewhere = any(same and read_elsewhere(value, m) for same, value in zip(provided, m.outputs[1:], strict=True))
    wants_present = m.past_key is not None or (elsewhere and not of_rows)
    past = past_rows if of_rows else (m.past_key, m.past_value)
    results = new.Attention(
        *(q, k, v, *past, padding, bias),
        num_heads=m.N,
        kv_num_heads=m.K,
        scale=scale,
        causal=int(closed.causal or causal),
        window=closed.window,
        softcap=softcap,
        **({"past_rows": 1} if of_rows else {}),
        outputs=3 if wants_present else 1,
    )
    y, *present = results if wants_present else (results, None, None)
    return laid_out(new, m, y), *(value if same else None for value, same in zip(present, provided, strict=True))


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


def understood(new, given, sizes, facts):
    """What the masks for scores of `sizes` B, S, L let through: their closed form and, as the operator takes it, its
    padding, and what is left of them as a bias [B|1, (N|1,) S|1, L]; None where there is nothing.
    """
    closed, rest = masks.Mask(), []
    for captured in given:
        if captured is None:
            continue
        found = masks.recognise(captured.value, sizes, facts)
        both = closed & found if found is not None else None
        if both is None:
            rest.append(captured)
        else:
            closed = both
    padding = closed.padding
    if padding is not None and facts.dtype(padding).is_floating_point():
        padding = new.onnx.Cast(padding, to="bool")
    return closed, padding, added(new, rest)


def added(new, rest):
    """All of the captured masks as one bias, None where there are none."""
    if not rest:
        return None
    if len(rest) == 1 and (every_head := without_heads(rest[0])) is not None:
        return additive(new, rest[0], every_head)
    terms = [additive(new, captured, captured.value) for captured in rest]
    bias = terms[0] if len(terms) == 1 else new.onnx.Add(*terms)
    rank = max(captured.rank for captured in rest)
    return bias if rank == 4 else new.onnx.Unsqueeze(bias, np.arange(4 - rank))


def scores_shape(m):
    """B, S and L of the scores."""
    query, keys = m.facts.shape((m.q or m.q_rows).value), m.facts.shape(m.outputs[1])
    return query[0], query[2] if m.q is not None else query[1], keys[2]


def without_heads(captured):
    """The mask [B, S, L] that was unsqueezed to the captured [B, 1, S, L], None where there is none."""
    node, shape = captured.value.producer(), captured.facts.shape(captured.value)
    if node is None or node.op_type != "Unsqueeze" or node.domain or shape is None or len(shape) != 4 or shape[1] != 1:
        return None
    rows = node.inputs[0]
    return rows if captured.facts.shape(rows) == (shape[0], *shape[2:]) else None


def additive(new, captured, mask):
    """The captured mask, given as `mask`, as what it adds to the scores: a boolean one is 0 or -infinity."""
    if captured.dtype != "bool":
        return mask
    return new.onnx.Where(mask, np.float32(0), np.float32(-np.inf))
