"""Attention in standard ONNX operators."""

from __future__ import annotations

import math

import onnx_ir as ir

from onnxfuse.custom_ops.body import Body
from onnxfuse.custom_ops.rotary_embedding.function import rotated


def function(
    op: Body,
    q: ir.Value,
    k: ir.Value,
    v: ir.Value,
    past_key: ir.Value | None,
    past_value: ir.Value | None,
    attention_mask: ir.Value | None,
    bias: ir.Value | None,
    cos: ir.Value | None,
    sin: ir.Value | None,
) -> dict[str, ir.Value]:
    """y = softmax(q k^T * scale + bias, over the visible keys) v

    The queries of a group are stacked, [B, N, S, D] -> [B, K, N/K * S, D], so that keys and values are not repeated.
    """
    heads, kv_heads = op.baked("num_heads"), op.baked("kv_num_heads")
    turned_q = q if cos is None else rotated(op, q, cos, sin, "num_heads")
    turned_k = k if cos is None else rotated(op, k, cos, sin, "kv_num_heads")
    keys, values = by_head(op, turned_k, kv_heads, like=k), by_head(op, v, kv_heads, like=v)
    mask = None if attention_mask is None else op.Cast(attention_mask, to=ir.DataType.BOOL)
    if op.nonzero("shared_cache"):
        end = shown_length(op, mask)
        present_key, present_value = written(op, past_key, keys, end), written(op, past_value, values, end)
        keys, values = first(op, present_key, end, axis=2), first(op, present_value, end, axis=2)
        mask = first(op, mask, end, axis=1)
    elif op.nonzero("past_rows"):
        present_key = present_rows(op, past_key, turned_k, kv_heads, like=k)
        present_value = present_rows(op, past_value, v, kv_heads, like=v)
        keys, values = heads_first(op, present_key), heads_first(op, present_value)
    elif past_key is not None:
        present_key = op.Concat(past_key, keys, axis=2)
        present_value = op.Concat(past_value, values, axis=2)
        keys, values = present_key, present_value
    else:
        present_key, present_value = keys, values

    queries = by_head(op, turned_q, heads, like=q)
    batch, queries_count, keys_count = dim(op, queries, 0), dim(op, queries, 2), dim(op, keys, 2)
    stacked = op.Mul(queries_count, op.constant([heads // kv_heads]))

    def stack(x: ir.Value, last: ir.Value) -> ir.Value:
        return x if heads == kv_heads else reshape(op, x, batch, kv_heads, stacked, last)

    def unstack(x: ir.Value, last: ir.Value) -> ir.Value:
        return x if heads == kv_heads else reshape(op, x, batch, heads, queries_count, last)

    scaled = op.Mul(wide(op, queries, q), scale(op, queries))
    scores = op.MatMul(stack(scaled, dim(op, queries, 3)), op.Transpose(wide(op, keys, k), perm=[0, 1, 3, 2]))
    scores = unstack(scores, keys_count)
    if op.nonzero("softcap"):
        softcap = op.attribute("softcap")
        scores = op.Mul(op.Tanh(op.Div(scores, softcap)), softcap)
    if bias is not None:
        added = op.float32(bias)
        scores = op.Add(scores, op.Unsqueeze(added, op.constant([1])) if op.rank(bias) == 3 else added)
    visible = visible_keys(op, mask, queries_count, keys_count)
    if visible is not None:
        scores = op.Where(visible, scores, op.constant(-math.inf))
    weights = op.Softmax(scores, axis=-1)
    if visible is not None or bias is not None:
        # Softmax of nothing but -infinity is NaN, a query that sees no key has weights of 0. The largest of the scores
        # would not tell: ONNX Runtime's ReduceMax of infinities is finite on CUDA.
        hidden = op.Cast(op.Equal(scores, op.constant(-math.inf)), to=ir.DataType.FLOAT)
        blind = op.Equal(op.reduce("ReduceMin", hidden, axis=-1), op.constant(1.0))
        weights = op.Where(blind, op.constant(0.0), weights)
    values_size = dim(op, values, 3)
    y = op.MatMul(stack(weights, keys_count), wide(op, values, v))
    y = op.rounded(unstack(y, values_size), like=q)
    if op.rank(q) == 3:
        features = op.Mul(values_size, op.constant([heads]))
        y = reshape(op, op.Transpose(y, perm=[0, 2, 1, 3]), batch, queries_count, features)
    return {"y": y, "present_key": present_key, "present_value": present_value}


def dim(op: Body, x: ir.Value, axis: int) -> ir.Value:
    """A dimension of x, as a tensor [1]."""
    return op.Gather(op.Shape(x), op.constant([axis]))


def count(op: Body, length: ir.Value) -> ir.Value:
    """0, 1 .. length - 1 for a tensor [1]."""
    return op.Range(op.constant(0), op.Squeeze(length, op.constant([0])), op.constant(1))


def reshape(op: Body, x: ir.Value, *dims: ir.Value | int) -> ir.Value:
    """x with these dimensions, tensors [1] or numbers. All are given, as -1 cannot be found for an empty tensor."""
    parts = [d if isinstance(d, ir.Value) else op.constant([d]) for d in dims]
    return op.Reshape(x, op.Concat(*parts, axis=0))


def by_head(op: Body, x: ir.Value, heads: int, like: ir.Value) -> ir.Value:
    """[B, S, heads * size] or [B, heads, S, size], as the input `like` is -> [B, heads, S, size]."""
    return x if op.rank(like) == 4 else heads_first(op, by_row(op, x, heads, like))


def by_row(op: Body, x: ir.Value, heads: int, like: ir.Value) -> ir.Value:
    """[B, S, heads * size] or [B, heads, S, size], as the input `like` is -> [B, S, heads, size]."""
    if op.rank(like) == 4:
        return heads_first(op, x)
    size = op.Div(dim(op, x, 2), op.constant([heads]))
    return reshape(op, x, dim(op, x, 0), dim(op, x, 1), heads, size)


def heads_first(op: Body, x: ir.Value) -> ir.Value:
    """[B, S, N, D] -> [B, N, S, D], or back."""
    return op.Transpose(x, perm=[0, 2, 1, 3])


def present_rows(op: Body, past: ir.Value | None, new: ir.Value, heads: int, like: ir.Value) -> ir.Value:
    """The past [B, P, heads, size] and the new rows."""
    rows = by_row(op, new, heads, like)
    return rows if past is None else op.Concat(past, rows, axis=1)


def wide(op: Body, x: ir.Value, like: ir.Value) -> ir.Value:
    """x, which has the dtype of the input `like`, in float32."""
    return x if op.dtype(like) == ir.DataType.FLOAT else op.Cast(x, to=ir.DataType.FLOAT)


def scale(op: Body, queries: ir.Value) -> ir.Value:
    """The factor of the scores: the attribute, or 1 / sqrt(D)."""
    if op.nonzero("scale"):
        return op.attribute("scale")
    size = op.Cast(dim(op, queries, 3), to=ir.DataType.FLOAT)
    return op.Div(op.constant(1.0), op.Sqrt(size))


def visible_keys(op: Body, mask: ir.Value | None, queries: ir.Value, keys: ir.Value) -> ir.Value | None:
    """The conditions on a key j for query i, bool, broadcast to [B, N, S, L]; None if there are none."""
    conditions = []
    if mask is not None:
        conditions.append(op.Unsqueeze(mask, op.constant([1, 2])))
    causal, window = op.nonzero("causal"), op.nonzero("window")
    if causal or window:
        key, query = count(op, keys), count(op, queries)
        diagonal = op.Unsqueeze(op.Add(query, op.Sub(keys, queries)), op.constant([1]))
        if causal:
            conditions.append(op.LessOrEqual(key, diagonal))
        if window:
            conditions.append(op.Greater(key, op.Sub(diagonal, op.attribute("window", int))))
    visible = None
    for condition in conditions:
        visible = condition if visible is None else op.And(visible, condition)
    return visible


def shown_length(op: Body, mask: ir.Value) -> ir.Value:
    """One past the last key that the mask [B, T] shows in any batch, as a tensor [1]."""
    ends = op.Add(count(op, dim(op, mask, 1)), op.constant(1))
    shown = op.Reshape(op.Mul(op.Cast(mask, to=ir.DataType.INT64), ends), op.constant([-1]))
    return op.reduce("ReduceMax", op.Concat(op.constant([0]), shown, axis=0), axis=0)


def first(op: Body, x: ir.Value, end: ir.Value, axis: int) -> ir.Value:
    """x[0:end] along an axis."""
    return op.Slice(x, op.constant([0]), end, op.constant([axis]))


def written(op: Body, buffer: ir.Value, new: ir.Value, end: ir.Value) -> ir.Value:
    """The buffer [B, K, M, D] with the new rows ending at row `end`."""
    rest = op.Slice(buffer, end, dim(op, buffer, 2), op.constant([2]))
    return op.Concat(first(op, buffer, op.Sub(end, dim(op, new, 2)), axis=2), new, rest, axis=2)
