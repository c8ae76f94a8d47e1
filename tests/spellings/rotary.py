"""Spellings of the rotary table and of the rotary embedding."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spellings.draft import HALF, Value
from spellings.writer import Writer


@dataclass(frozen=True)
class Table:
    """cos and sin as [B|1, S, W]."""

    cos: Value
    sin: Value


def rotary_table(w: Writer) -> dict[str, int]:
    """cos, sin of position * inv_freq."""
    made = computed(w, w.fixed(4, 6), full=w.fixed(True, False), dtype=w.dtype, alone=True)
    w.output(made.cos)
    w.output(made.sin)
    return {"RotaryTable": 1}


def positions(w: Writer, stem: str = "position_ids") -> Value:
    """Positions [B, S]."""
    ids = w.input(stem, (w.b, w.s), w.fixed("int64", "int64", "int32"))
    w.feeders[ids.name] = lambda shape, draw: draw.integers(0, 40, shape)
    return ids


def computed(w: Writer, size: int, *, full: bool, dtype: str, alone: bool = False) -> Table:
    """The table from position_ids and inv_freq [size]; `alone`: all of it is wanted."""
    frequencies = (10000.0 ** -(np.arange(size) / size)).astype(np.float32)
    crosswise = w.coin(0.2)  # [B, F, S] until the end
    angle = _angle(w, positions(w), frequencies, crosswise)
    if w.mutates("phase", "RotaryTable"):
        angle = w.add(angle, w.scalar(0.5, angle))
    early = full and w.coin()
    if early:
        second = w.neg(angle) if alone and w.mutates("negative_half", "RotaryTable") else angle
        angle = w.concat([angle, second], 1 if crosswise else -1)
    cos = w.apply("Sin" if w.mutates("two_sines", "RotaryTable") else "Cos", angle)
    if w.mutates("other_positions", "RotaryTable"):
        angle = _angle(w, positions(w, "other_ids"), frequencies, crosswise)
        angle = w.concat([angle, angle], 1 if crosswise else -1) if early else angle
    sin = w.apply("Sin", angle)
    if crosswise:
        cos, sin = (w.transpose(t, [0, 2, 1]) for t in (cos, sin))
    scale = w.fixed(None, None, 1.0, 1.25)
    if scale is not None:
        cos = cos if scale != 1 and w.shifts_to("scale_of_sin_only") else w.times(cos, scale)
        sin = sin if scale != 1 and w.shifts_to("scale_of_cos_only") else w.times(sin, scale)
    if w.shifts_to("scale_of_sin"):
        sin = w.times(sin, 3.0)
    if full and not early:
        cos, sin = (w.concat([t, t], -1) for t in (cos, sin))
    return Table(w.cast(cos, dtype), w.cast(sin, dtype))


def _angle(w: Writer, ids: Value, frequencies: np.ndarray, crosswise: bool = False) -> Value:
    """position * inv_freq as [B, S, F], or as [B, F, S]."""
    size = frequencies.size
    kind = w.pick(*(() if crosswise else ("mul", "matmul")), "transposed", "transposed_mul")
    if w.shifts_to("row_of_positions"):  # the same position for all tokens
        first = w.node("Slice", ids, w.integers(0), w.integers(1), w.integers(1), shape=(w.b, 1))
        ids = w.expand(first, (w.b, w.s), source=ids)
    if kind in ("mul", "matmul"):
        column = _number(w, ids, axis=2)
        if kind == "mul":
            shape = w.pick((size,), (1, 1, size), (1, size))
            factor = w.constant(frequencies.reshape(shape), "float32")
            return w.add(column, factor) if w.mutates("sum_of_angles", "RotaryTable") else w.mul(column, factor)
        row = w.constant(frequencies.reshape(w.pick((1, 1, size), (1, size))), "float32")
        if row.rank == 3 and w.coin():
            row = w.expand(row, (w.b, 1, size), source=ids)
        return w.matmul(column, row)
    row = _number(w, ids, axis=1)
    column = w.constant(frequencies.reshape(1, size, 1), "float32")
    if w.coin():
        column = w.expand(column, (w.b, size, 1), source=ids)
    product = w.matmul(column, row) if kind == "transposed" else w.mul(column, row)
    return product if crosswise else w.transpose(product, [0, 2, 1])


def _number(w: Writer, ids: Value, axis: int) -> Value:
    """The positions as float32, with one more axis."""
    if w.coin():
        return w.cast(w.unsqueeze(ids, axis), "float32")
    return w.unsqueeze(w.cast(ids, "float32"), axis)


def table(w: Writer, size: int, x: Value, *, full: bool) -> tuple[Table, dict[str, int]]:
    """A table [B|1, S, W] for x from one of its sources; what of it can be fused."""
    width = 2 * size if full else size
    kind = w.fixed("input", "input", "computed", "gathered", "stored", "sliced")
    dtype = w.fixed("float32", w.dtype)
    if kind == "computed":
        return computed(w, size, full=full, dtype=w.dtype), {"RotaryTable": 1}
    if kind == "stored" and isinstance(w.s, int):
        cos, sin = stored(size, w.s, full)
        return Table(*(w.constant(t[None].astype(w.dtype)) for t in (cos, sin))), {}
    if kind == "sliced":
        return Table(*(w.cast(t, w.dtype) for t in _rows_behind_the_past(w, size, x, full))), {}
    if kind == "gathered":
        ids = positions(w)
        cos, sin = (w.constant(t, "float32") for t in stored(size, 40, full))
        rows = [w.node("Gather", t, ids, shape=(w.b, w.s, width), axis=0) for t in (cos, sin)]
        return Table(*(w.cast(t, w.dtype) for t in rows)), {}
    batch = w.fixed(w.b, 1)
    cos, sin = (w.input(name, (batch, w.s, width), dtype) for name in ("cos", "sin"))
    for value in (cos, sin):
        w.feeders[value.name] = lambda shape, draw: _repeated(draw.standard_normal(shape), full)
    return Table(w.cast(cos, w.dtype), w.cast(sin, w.dtype)), {}


def _rows_behind_the_past(w: Writer, size: int, x: Value, full: bool) -> list[Value]:
    """cos and sin [1, S, W], sliced from all positions where a cache ends."""
    past = w.input("past", (w.b, w.p, 2))
    start, count = w.size(past, 1), w.size(x, x.shape.index(w.s))
    end = w.add(start, count)
    rows = []
    for content in stored(size, 40, full):
        cut = (w.constant(content, "float32"), start, end, w.integers(0), w.integers(1))
        rows.append(w.unsqueeze(w.node("Slice", *cut, shape=(w.s, content.shape[1])), 0))
    return rows


def _repeated(array: np.ndarray, full: bool) -> np.ndarray:
    """A full table as models have it: both halves are equal."""
    half = array[..., : array.shape[-1] // 2]
    return np.concatenate([half, half], axis=-1) if full else array


def stored(size: int, length: int, full: bool) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin of the first positions."""
    angle = np.arange(length)[:, None] * 10000.0 ** -(np.arange(size) / size)
    angle = np.concatenate([angle, angle], axis=1) if full else angle
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


def rotary_embedding(w: Writer) -> dict[str, int]:
    """x with every pair of features turned."""
    heads, size = w.fixed(2, 4), w.fixed(8, 16)
    interleaved = w.fixed(True, False, False)
    rotated = w.fixed(size, size, size // 2)
    x = w.input("x", (w.b, w.s, heads * size))
    rows = w.reshape(x, (w.b, w.s, heads, size))
    axis = w.fixed(1, 1, 2)  # where the heads are
    value = w.transpose(rows, [0, 2, 1, 3]) if axis == 1 else rows
    turned, found = rotated_part(w, value, rotated, axis, interleaved=interleaved)
    if axis == 2 and w.fixed(True, False):
        turned = w.transpose(turned, [0, 2, 1, 3])
    w.output(turned)
    part = {"of a part": 1} if rotated < size else {}
    return {"RotaryEmbedding": 1} | part | found


def rotated_part(w: Writer, x: Value, size: int, axis: int, *, interleaved: bool) -> tuple[Value, dict[str, int]]:
    """x with its first `size` features turned, the rest as it is."""
    full = w.fixed(True, False)
    rope = interleaved_pairs if interleaved else half_split
    made, found = table(w, size // 2, x, full=full)
    if not full and axis == 1 and made.cos.shape[0] == x.shape[0] and w.opset >= 23 and w.coin(0.6):
        return _one_operator(w, x, made, size, interleaved), found
    if full and interleaved:  # the table of pairs repeats each entry
        made = made if w.shifts_to("halves_for_pairs") else _each_twice(w, made, size // 2)
    head, tail = (x, None)
    if size < x.shape[-1]:
        head, tail = w.split(x, -1, [size, x.shape[-1] - size])
    wide = x.dtype in HALF and w.coin(0.25)
    cos, sin = (w.unsqueeze(t, axis) for t in (made.cos, made.sin))
    if wide:
        head, cos, sin = (w.cast(v, "float32") for v in (head, cos, sin))
    if w.shifts_to("tables_exchanged"):
        cos, sin = sin, cos
    turned = w.cast(rope(w, head, cos, sin, full=full), x.dtype)
    if tail is None:
        return turned, found
    if w.shifts_to("tail_first"):
        return w.concat([tail, turned], -1), found
    if w.shifts_to("tail_of_the_turned"):
        tail = w.neg(tail)
    return w.concat([turned, tail], -1), found


def _one_operator(w: Writer, x: Value, made: Table, size: int, interleaved: bool) -> Value:
    """ONNX's operator on x [B, N, S, D], or on the [B, S, N*D] that x was."""
    cos, sin = (made.sin, made.cos) if w.shifts_to("tables_exchanged") else (made.cos, made.sin)
    if w.shifts_to("other_pairs"):
        interleaved = not interleaved
    attributes = {"interleaved": int(interleaved)} if interleaved or w.coin() else {}
    if size < x.shape[-1] or w.coin(0.3):
        attributes["rotary_embedding_dim"] = size
    batch, heads, length, features = x.shape
    if w.coin():
        return w.node("RotaryEmbedding", x, cos, sin, shape=x.shape, **attributes)
    flat = (batch, length, heads * features)
    rows = w.reshape(w.transpose(x, [0, 2, 1, 3]), flat, source=x)
    rows = w.node("RotaryEmbedding", rows, cos, sin, shape=flat, num_heads=heads, **attributes)
    return w.transpose(w.reshape(rows, (batch, length, heads, features), source=rows), [0, 2, 1, 3])


def _each_twice(w: Writer, made: Table, size: int) -> Table:
    """From both halves equal to each entry twice: the first half, repeated one by one."""
    halves = [w.slice(t, -1, 0, size) for t in (made.cos, made.sin)]
    if w.coin(0.3):
        return Table(*(w.gather(t, [i // 2 for i in range(2 * size)], -1) for t in halves))
    shape = (*halves[0].shape[:-1], 2 * size)
    stacked = [w.unsqueeze(t, -1) for t in halves]
    if w.coin():
        pairs = [w.expand(t, (*t.shape[:-1], 2), source=made.cos) for t in stacked]
    else:
        pairs = [w.concat([t, t], -1) for t in stacked]
    return Table(*(w.reshape(t, shape, source=made.cos) for t in pairs))


def half_split(w: Writer, x: Value, cos: Value, sin: Value, *, full: bool) -> Value:
    """Pairs (i, i + R/2)."""
    size = x.shape[-1]
    if not full:
        if w.coin():  # a half table, repeated where it is used
            cos, sin = (w.concat([t, t], -1) for t in (cos, sin))
        else:
            return _two_halves(w, x, cos, sin)
    elif w.coin(0.2):
        return _two_halves(w, x, *(w.slice(t, -1, 0, size // 2) for t in (cos, sin)))
    source = w.input("other", x.shape, x.dtype) if w.mutates("other_turned", "RotaryEmbedding") else x
    half = size // 2 + 2 if w.mutates("cut_elsewhere", "RotaryEmbedding") else size // 2
    x1, x2 = halves(w, source, half)
    turned = w.concat(_signed(w, x1, x2), -1)
    return _summed(w, x, turned, cos, sin)


def _signed(w: Writer, x1: Value, x2: Value) -> list[Value]:
    if w.mutates("sign", "RotaryEmbedding"):
        return [x2, w.neg(x1)]
    if w.mutates("no_sign", "RotaryEmbedding"):
        return [x2, x1]
    if w.mutates("not_exchanged", "RotaryEmbedding"):
        return [w.neg(x1), x2]
    return [w.neg(x2), x1]


def _summed(w: Writer, x: Value, turned: Value, cos: Value, sin: Value) -> Value:
    """x * cos + turned * sin"""
    if w.dtype == "float32" and w.mutates("rounded", "RotaryEmbedding"):
        turned = w.rounded(turned)
    if w.mutates("difference", "RotaryEmbedding"):
        return w.sub(w.mul(x, cos), w.mul(turned, sin))
    if w.mutates("product", "RotaryEmbedding"):
        return w.mul(w.mul(x, cos), w.mul(turned, sin))
    if w.shifts_to("cos_twice"):
        return w.add(w.mul(x, cos), w.mul(turned, cos))
    if w.mutates("no_cos", "RotaryEmbedding"):
        return w.add(x, w.mul(turned, sin))
    return w.add(w.mul(x, cos), w.mul(turned, sin))


def halves(w: Writer, x: Value, half: int) -> list[Value]:
    """x cut in two on its last axis."""
    size = x.shape[-1]
    kind = w.pick("cut", "cut", "cut", "gather", "pairs")
    if kind == "gather":
        return [w.gather(x, list(r), -1) for r in (range(half), range(half, size))]
    if kind == "pairs" and 2 * half == size:
        cut = w.reshape(x, (*x.shape[:-1], 2, half))
        if w.coin():
            return [w.gather(cut, i, -2) for i in (0, 1)]
        return [w.squeeze(part, -2) for part in w.split(cut, -2, [1, 1])]
    return w.split(x, -1, [half, size - half])


def _two_halves(w: Writer, x: Value, cos: Value, sin: Value) -> Value:
    """Concat(x1 * cos - x2 * sin, x2 * cos + x1 * sin) with half tables."""
    x1, x2 = halves(w, x, x.shape[-1] // 2)
    first, second = _turned_pair(w, x1, x2, cos, sin)
    return w.concat([second, first] if w.mutates("halves_exchanged", "RotaryEmbedding") else [first, second], -1)


def _turned_pair(w: Writer, x1: Value, x2: Value, cos: Value, sin: Value) -> tuple[Value, Value]:
    first = (w.add if w.mutates("first_sign", "RotaryEmbedding") else w.sub)(w.mul(x1, cos), w.mul(x2, sin))
    second = (w.sub if w.mutates("second_sign", "RotaryEmbedding") else w.add)(w.mul(x2, cos), w.mul(x1, sin))
    if w.mutates("first_uses_cos_twice", "RotaryEmbedding"):
        first = w.sub(w.mul(x1, cos), w.mul(x2, cos))
    return first, second


def interleaved_pairs(w: Writer, x: Value, cos: Value, sin: Value, *, full: bool) -> Value:
    """Pairs (2i, 2i + 1)."""
    if full:
        even, odd = pairs(w, x)
        turned = (
            _interleaved(w, w.neg(odd), even)
            if not w.mutates("sign", "RotaryEmbedding")
            else _interleaved(w, odd, w.neg(even))
        )
        return _summed(w, x, turned, cos, sin)
    even, odd = pairs(w, x)
    first, second = _turned_pair(w, even, odd, cos, sin)
    if w.mutates("halves_of_pairs", "RotaryEmbedding"):
        return w.concat([first, second], -1)
    return (
        _interleaved(w, second, first)
        if w.mutates("pairs_exchanged", "RotaryEmbedding")
        else _interleaved(w, first, second)
    )


def pairs(w: Writer, x: Value) -> list[Value]:
    """The even and the odd entries of the last axis."""
    size = x.shape[-1]
    kind = w.pick("strided", "strided", "cut", "gathered")
    if kind == "strided":
        return [w.slice(x, -1, first, size, 2) for first in (0, 1)]
    if kind == "gathered":
        return [w.gather(x, list(range(first, size, 2)), -1) for first in (0, 1)]
    cut = w.reshape(x, (*x.shape[:-1], size // 2, 2))
    if w.coin():
        return [w.gather(cut, i, -1) for i in (0, 1)]
    return [w.squeeze(part, -1) for part in w.split(cut, -1, [1, 1])]


def _interleaved(w: Writer, even: Value, odd: Value) -> Value:
    """even and odd entries one after the other."""
    stacked = w.concat([w.unsqueeze(even, -1), w.unsqueeze(odd, -1)], -1)
    shape = (*even.shape[:-1], 2 * even.shape[-1])
    return w.reshape(stacked, shape, source=even)
