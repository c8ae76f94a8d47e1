"""Spellings of attention: heads, cache, scores, mask, softmax, result."""

from __future__ import annotations

import re

import numpy as np

from spellings import masks
from spellings.draft import DTYPES, HALF, Value
from spellings.masks import Mask, Place
from spellings.sizes import evaluated, joined, merged
from spellings.writer import Writer

HEADS_FIRST = [0, 2, 1, 3]


def attention(w: Writer) -> dict[str, int]:
    """softmax(q @ k^T * scale + mask) @ v."""
    heads = w.fixed(2, 4)
    groups = w.fixed(heads, heads, heads // 2, 1)
    size = w.fixed(4, 8)
    value_size = w.fixed(size, size, size, 6)
    q, k, v = projections(w, heads, groups, size, value_size)
    context, found = attend(w, q, k, v, groups)
    w.output(laid_out(w, context))
    return {"Attention": 1} | found


def projections(w: Writer, heads: int, groups: int, size: int, value_size: int) -> tuple[Value, Value, Value]:
    """q [B, N, S, D], k [B, K, S, D], v [B, K, S, E]."""
    widths = [heads * size, groups * size, groups * value_size]
    if w.fixed(True, False, False):
        packed = w.input("qkv", (w.b, w.s, sum(widths)))
        flat = w.split(packed, -1, widths)
    else:
        flat = [w.input(name, (w.b, w.s, width)) for name, width in zip("qkv", widths, strict=True)]
    shapes = [(heads, size), (groups, size), (groups, value_size)]
    rows = [w.reshape(x, (w.b, w.s, *shape)) for x, shape in zip(flat, shapes, strict=True)]
    return tuple(w.transpose(x, HEADS_FIRST) for x in rows)


def attend(w: Writer, q: Value, k: Value, v: Value, groups: int) -> tuple[Value, dict[str, int]]:
    """The context [B, N, S, E]."""
    heads = q.shape[1]
    if w.opset >= 23 and w.coin(0.4):
        return _one_operator(w, q, k, v), {}
    if w.fixed(True, False):
        k, v = (with_past(w, x, name) for x, name in ((k, "past_key"), (v, "past_value")))
        w.output(k)
        w.output(v)
    place = Place(w.b, heads, w.s, k.shape[2], q, k, apart=w.coin(0.2))
    if place.apart:
        q = in_groups(w, q, groups)
        keys, values = (w.unsqueeze(x, 2) for x in (k, v))
    else:
        keys, values = (repeated(w, x, heads // groups) for x in (k, v))
    scores = scaled_scores(w, q, keys)
    if w.fixed(True, *[False] * 5):
        scores = soft_capped(w, scores)
    if w.dtype == "float32" and w.mutates("rounded", "Attention"):
        scores = w.rounded(scores)
    masked, mask = with_mask(w, scores, place)
    weights = softmax(w, masked, q.dtype)
    if w.mutates("weights_scaled", "Attention"):
        weights = w.times(weights, 2.0)
    if w.mutates("weights_moved", "Attention"):
        weights = w.add(weights, w.scalar(0.5, weights))
    if w.mutates("weights_from_one", "Attention"):
        weights = w.sub(w.scalar(1.0, weights), weights)
    context = product(w, weights, w.cast(values, weights.dtype), place)
    if place.apart:
        context = w.reshape(context, (w.b, heads, w.s, v.shape[3]), source=q)
    if mask is not None and w.coin(0.3):
        context = zeroed(w, context, mask)
    return context, {}


def zeroed(w: Writer, context: Value, mask: Mask) -> Value:
    """The context, zero in rows that see no key."""
    count = w.reduce("ReduceSum", w.node("Cast", mask.value, shape=mask.value.shape, dtype="float32", to=1))
    least = 2.0 if w.shifts_to("rows_of_one_key_zeroed") else 1.0
    enough = w.scalar_of(least, "float32")
    zero = w.scalar_of(0.0, context.dtype)
    unattended = w.node("Less", count, enough, shape=count.shape, dtype="bool")
    if w.coin():
        return w.node("Where", unattended, zero, context, shape=context.shape, dtype=context.dtype)
    seen = w.node("Not", unattended, shape=count.shape)
    return w.node("Where", seen, context, zero, shape=context.shape, dtype=context.dtype)


def in_groups(w: Writer, q: Value, groups: int) -> Value:
    """q [B, N, S, D] as [B, K, N/K, S, D]."""
    batch, heads, length, size = q.shape
    if w.coin():
        return w.reshape(q, (batch, groups, heads // groups, length, size), source=q)
    rows = w.reshape(w.transpose(q, HEADS_FIRST), (batch, length, groups, heads // groups, size), source=q)
    return w.transpose(rows, [0, 2, 3, 1, 4])


def _one_operator(w: Writer, q: Value, k: Value, v: Value) -> Value:
    """Attention as ONNX's operator: its past joined before it or inside, [B, N, S, D] or [B, S, N*D]."""
    heads, groups = q.shape[1], k.shape[1]
    has_past = w.fixed(True, False)
    inside = has_past and w.fixed(True, False)
    cache = []
    if inside:
        cache = [w.input(name, (*x.shape[:2], w.p, x.shape[3])) for x, name in ((k, "past_key"), (v, "past_value"))]
    elif has_past:
        k, v = (with_past(w, x, name) for x, name in ((k, "past_key"), (v, "past_value")))
        w.output(k)
        w.output(v)
    length = joined([w.p, w.s]) if inside else k.shape[2]
    mask, attributes = _operators_mask(w, Place(w.b, heads, w.s, length, q, k), inside)
    scale = w.fixed(None, q.shape[3] ** -0.5, 0.3)
    if scale is not None:
        attributes["scale"] = scale * 2 if w.shifts_to("other_scale") else scale
    if w.fixed(True, *[False] * 5):
        attributes["softcap"] = 60.0 if w.shifts_to("other_cap") else 30.0
    if q.dtype in HALF and w.coin():
        attributes["softmax_precision"] = DTYPES["float32"]
    if groups < heads and not inside and w.coin():
        k, v = (repeated(w, x, heads // groups) for x in (k, v))
    presents = [(*x.shape[:2], length, x.shape[3]) for x in (k, v)] if inside else []
    outputs = 1 + len(presents)
    batch, _, queries, size = (*q.shape[:3], v.shape[3])
    flat = w.coin()
    if flat:
        attributes |= {"q_num_heads": heads, "kv_num_heads": k.shape[1]}
        q, k, v = (_merged(w, x) for x in (q, k, v))
    shape = (batch, queries, heads * size) if flat else (batch, heads, queries, size)
    made = w.node(
        "Attention", q, k, v, mask, *cache, shape=[shape, *presents] if inside else shape, outputs=outputs, **attributes
    )
    y, *presents = made if inside else (made,)
    for present in presents:
        w.output(present)
    return w.transpose(w.reshape(y, (batch, queries, heads, size), source=y), HEADS_FIRST) if flat else y


def _merged(w: Writer, x: Value) -> Value:
    """x [B, N, S, D] as [B, S, N*D]."""
    batch, heads, length, size = x.shape
    return w.reshape(w.transpose(x, HEADS_FIRST), (batch, length, heads * size), source=x)


def _operators_mask(w: Writer, place: Place, inside: bool) -> tuple[Value | None, dict[str, int]]:
    """The mask for ONNX's operator, and whether it is causal by itself: if it knows the past, or there is none."""
    attributes = {}
    if inside or not place.has_past:
        padded, is_causal = w.fixed((False, False), (False, True), (True, True), (True, False))
        made = [masks.padding(w, place)] if padded else []
        attributes = {"is_causal": 1} if is_causal else {}
        queries, keys = place.queries, place.keys

        def causal(sizes, feeds):
            rows, columns = np.indices([evaluated(size, sizes) for size in (queries, keys)])
            return (columns <= rows + evaluated(keys, sizes) - evaluated(queries, sizes))[None]

        seen = [m.seen for m in made] + ([causal] if is_causal else [])
    else:
        made = chosen_mask(w, place) or []
        seen = [m.seen for m in made]
        if w.mutates("causal_from_the_first_key", "Attention"):
            attributes = {"is_causal": 1}
    if not made:
        return None, attributes
    w.seen = lambda sizes, feeds: np.all(np.broadcast_arrays(*(s(sizes, feeds) for s in seen)), axis=0).any(-1)
    mask = made[0] if len(made) == 1 else masks.both(w, *made)
    value = mask.value if w.coin() else masks.additive(w, mask, w.dtype, masks.hidden_number(w))
    sizes = [w.size(place.query, 0), w.integers(1), w.size(place.query, 2), w.size(mask.value, 3)]
    shape = (place.batch, 1, place.queries, place.keys)
    return w.node("Expand", value, w.node("Concat", *sizes, shape=(4,), dtype="int64", axis=0), shape=shape), attributes


def with_past(w: Writer, new: Value, name: str) -> Value:
    """The cache, then the new keys or values."""
    batch, groups, _, size = new.shape
    past = w.input(name, (batch, groups, w.p, size))
    return w.concat([new, past] if w.shifts_to("past_after") else [past, new], 2)


def repeated(w: Writer, x: Value, count: int) -> Value:
    """x [B, K, L, D] with every head `count` times."""
    batch, groups, length, size = x.shape
    if count == 1 and w.coin(0.8):
        return x
    shape = (batch, groups * count, length, size)
    if groups > 1 and count > 1 and w.shifts_to("tiled"):
        return w.concat([x] * count, 1)
    kind = w.pick("expand", "expand", "tile", "concat", "gather")
    if kind == "gather":
        return w.gather(x, np.repeat(np.arange(groups), count), 1)
    wide = w.unsqueeze(x, 2)
    five = (batch, groups, count, length, size)
    if kind == "expand":
        wide = w.expand(wide, five, source=x)
    elif kind == "tile":
        wide = w.node("Tile", wide, w.integers(1, 1, count, 1, 1), shape=five)
    else:
        wide = w.concat([wide] * count, 2) if count > 1 else wide
    return w.reshape(wide, shape, source=x)


def scaled_scores(w: Writer, q: Value, k: Value) -> Value:
    """q @ k^T * scale [B, N, S, L]."""
    size = q.shape[-1]
    scale = w.fixed(size**-0.5, size**-0.5, size**-0.5, 1.0, 0.3)
    where = w.pick("scores", "scores", "q", "k", "both")
    if w.shifts_to("scale_of_a_feature"):
        q = w.mul(q, w.constant(np.linspace(0.5, 2, size), q.dtype))
    if where == "both":
        q, k = (w.times(x, scale**0.5) for x in (q, k))
    elif where == "q":
        q = w.times(q, scale)
    elif where == "k":
        k = w.times(k, scale)
    if w.shifts_to("scores_of_k"):
        q = w.add(q, w.scalar(0.3, q))
    if w.mutates("keys_not_turned", "Attention"):
        scores = w.matmul(q, w.reshape(k, (*k.shape[:-2], size, k.shape[-2]), source=k))
    elif q.dtype == "float32" and w.coin(0.15):
        scores = einsum(w, q, k, "sd,td->st")
    else:
        turned = w.transpose(k, [*range(k.rank - 2), k.rank - 1, k.rank - 2])
        scores = folded_product(w, q, turned) if q.rank == 4 and w.coin(0.15) else w.matmul(q, turned)
    if w.mutates("scores_squared", "Attention"):
        scores = w.square(scores)
    if w.mutates("scores_positive", "Attention"):
        scores = w.apply("Relu", scores)
    if w.mutates("scores_of_a_row", "Attention"):  # less their product with the row's mean
        scores = w.sub(scores, w.mul(scores, w.reduce("ReduceMean", scores)))
    if w.mutates("scale_of_a_head", "Attention"):
        scores = w.mul(
            scores, w.constant(np.linspace(0.5, 2, scores.shape[1]).reshape(-1, *[1] * (scores.rank - 2)), scores.dtype)
        )
    return w.times(scores, scale) if where == "scores" else scores


def einsum(w: Writer, a: Value, b: Value, equation: str) -> Value:
    """Einsum of a's and b's last two axes for every head; those of a group [B, K, G, S, D] meet one of b's."""
    left, right = ("bkg", "bk") if a.rank == 5 else ("bn", "bn")
    first, second, result = re.split(",|->", equation)
    last = {"t": b.shape[-2], "d": b.shape[-1]}[result[-1]]
    b = w.squeeze(b, 2) if a.rank == 5 else b
    return w.node(
        "Einsum", a, b, shape=(*a.shape[:-1], last), equation=f"{left}{first},{right}{second}->{left}{result}"
    )


def folded_product(w: Writer, a: Value, b: Value) -> Value:
    """a @ b with the heads folded into the batch, as torch.bmm has them."""
    batch, heads, rows, _ = a.shape
    folded = [w.reshape(x, (merged(x.shape[:2]), *x.shape[2:]), source=x) for x in (a, b)]
    made = w.matmul(*folded)
    return w.reshape(made, (batch, heads, rows, b.shape[-1]), source=a)


def soft_capped(w: Writer, scores: Value) -> Value:
    """cap * tanh(scores / cap)"""
    cap = w.fixed(5.0, 30.0)
    inner = w.times(scores, 1 / cap)
    return w.times(w.apply("Tanh", inner), cap * 2 if w.shifts_to("other_cap") else cap)


def with_mask(w: Writer, scores: Value, place: Place) -> tuple[Value, Mask | None]:
    """The scores under a mask of any kind, and that mask, None where there is none or it is numbers."""
    made = chosen_mask(w, place)
    if made is None:
        if not w.fixed(True, False, False):
            return scores, None
        numbers = bias(w, place, scores.dtype)
        return w.add(scores, w.unsqueeze(numbers, 1) if place.apart else numbers), None
    seen = [m.seen for m in made]
    w.seen = lambda sizes, feeds: np.all(np.broadcast_arrays(*(s(sizes, feeds) for s in seen)), axis=0).any(-1)
    if len(made) == 2 and w.coin(0.5):  # two masks, one after the other
        return added(w, added(w, scores, made[0], place), made[1], place), None
    mask = made[0] if len(made) == 1 else masks.both(w, *made)
    return added(w, scores, mask, place) if w.coin(0.6) else chosen(w, scores, mask, place), mask


def chosen_mask(w: Writer, place: Place) -> list[Mask] | None:
    kind = w.fixed("none", "causal", "causal", "padding", "both", "both", "window", "window_and_padding")
    if kind == "none":
        return None
    window = w.fixed(2, 3, 4) if "window" in kind else 0
    found = []
    if kind != "padding":
        found.append(masks.causal(w, place, window))
    if kind in ("padding", "both", "window_and_padding"):
        found.append(masks.padding(w, place))
    return found


def bias(w: Writer, place: Place, dtype: str) -> Value:
    """Numbers to add to the scores: an input, or, as in ALiBi, constants."""
    heads = 1 if place.apart else w.fixed(1, place.heads)
    if isinstance(place.keys, int) and not place.apart and w.fixed(True, False):
        slopes = np.linspace(0.1, 1, place.heads).reshape(1, -1, 1, 1) * np.arange(-place.keys, 0)
        return w.constant(slopes, dtype)
    batch = w.fixed(place.batch, 1)
    return w.input("bias", (batch, heads, place.queries, place.keys), dtype)


def added(w: Writer, scores: Value, mask: Mask, place: Place) -> Value:
    number = -1.0 if w.shifts_to("hidden_still_counts") else masks.hidden_number(w)
    value = masks.additive(w, mask, scores.dtype, number)
    if w.mutates("mask_multiplies", "Attention"):
        return w.mul(scores, masks.widened(w, value, place))
    return w.add(scores, masks.widened(w, value, place))


def chosen(w: Writer, scores: Value, mask: Mask, place: Place) -> Value:
    """Where(visible, scores, hidden), or the other way round."""
    number = -1.0 if w.mutates("hidden_is_small", "Attention") else masks.hidden_number(w)
    low = w.scalar_of(number, scores.dtype)
    value = masks.widened(w, mask.value, place)
    if w.coin():
        return w.node("Where", value, scores, low, shape=scores.shape, dtype=scores.dtype)
    unseen = w.node("Not", value, shape=value.shape)
    return w.node("Where", unseen, low, scores, shape=scores.shape, dtype=scores.dtype)


def softmax(w: Writer, scores: Value, dtype: str) -> Value:
    """The weights [B, N, S, L]."""
    if w.mutates("sigmoid", "Attention"):
        return w.apply("Sigmoid", scores)
    wide = w.cast(scores, "float32") if dtype in HALF and w.coin(0.7) else scores
    axis = -2 if w.mutates("softmax_axis", "Attention") else w.pick(-1, scores.rank - 1)
    in_steps = w.coin(0.1) and axis != -2
    weights = decomposed_softmax(w, wide) if in_steps else w.apply("Softmax", wide, axis=axis)
    if w.mutates("softmax_twice", "Attention"):
        weights = w.apply("Softmax", weights, axis=-1)
    early = w.coin()
    weights = weights if early else w.cast(weights, dtype)
    if w.coin(0.3):
        weights = guarded(w, weights)
    return w.cast(weights, dtype)


def decomposed_softmax(w: Writer, scores: Value) -> Value:
    """exp(s - max) / sum(exp(s - max))"""
    shifted = w.node("Sub", scores, w.reduce("ReduceMax", scores), shape=scores.shape)
    raised = w.apply("Exp", shifted)
    return w.div(raised, w.reduce("ReduceMax" if w.mutates("not_normalised", "Attention") else "ReduceSum", raised))


def guarded(w: Writer, weights: Value) -> Value:
    """Zero where a row that sees nothing is NaN."""
    isnan = w.node("IsNaN", weights, shape=weights.shape, dtype="bool")
    if w.mutates("guard", "Attention"):
        isnan = w.node("Less", weights, w.scalar_of(0.2, weights.dtype), shape=weights.shape, dtype="bool")
    return w.node("Where", isnan, w.scalar_of(0.0, weights.dtype), weights, shape=weights.shape, dtype=weights.dtype)


def product(w: Writer, weights: Value, values: Value, place: Place) -> Value:
    """weights @ v [B, N, S, E]."""
    if w.shifts_to("values_reversed"):
        ends = w.integers(-1), w.integers(-(2**31))
        values = w.node("Slice", values, *ends, w.integers(values.rank - 2), w.integers(-1), shape=values.shape)
    if weights.dtype == "float32" and w.coin(0.15):
        return einsum(w, weights, values, "st,td->sd")
    if weights.rank == 4 and w.coin(0.15):
        return folded_product(w, weights, values)
    return w.matmul(weights, values)


def laid_out(w: Writer, context: Value) -> Value:
    """[B, N, S, E], [B, S, N, E] or [B, S, N*E]."""
    batch, heads, length, size = context.shape
    kind = w.fixed("merged", "merged", "rows", "first")
    if kind == "first":
        w.seen_axis = 2
        return context
    w.seen_axis = 1
    rows = w.transpose(context, HEADS_FIRST)
    if w.seen is None and w.shifts_to("heads_not_turned_back"):
        rows = w.reshape(context, (batch, length, heads, size), source=context)
    return w.reshape(rows, (batch, length, heads * size), source=rows) if kind == "merged" else rows
