"""Spellings of attention masks: what is visible, and how that reaches the scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from spellings.draft import DTYPES, Value
from spellings.sizes import Dim, broadcast, evaluated
from spellings.writer import Writer

Visible = Callable[[Mapping[str, int], Mapping[str, np.ndarray]], np.ndarray]


@dataclass(frozen=True)
class Place:
    """Where a mask is needed: the sizes of the scores, and values to read open sizes from."""

    batch: Dim
    heads: int
    queries: Dim
    keys: Dim
    query: Value  # [B, N, S, D]
    key: Value  # [B, K, L, D]
    apart: bool = False  # the query heads of a group have an axis of their own: scores [B, K, N/K, S, L]

    @property
    def has_past(self) -> bool:
        return self.queries != self.keys


@dataclass(frozen=True)
class Mask:
    """A boolean mask [B|1, 1, S|1, L], True where a key is visible; `seen` says the same of given inputs, [B, S, L]."""

    value: Value
    seen: Visible


def hidden_number(w: Writer) -> float:
    """What exporters add to, or put in place of, a hidden score."""
    least = float(ml_dtypes.finfo(np.dtype(w.dtype)).min)
    return w.pick(-np.inf, least, least, -1e4, *([-1e9] if w.dtype == "float32" else []))


# ---- boolean masks ---------------------------------------------------------------------------------------------------


def causal(w: Writer, place: Place, window: int = 0) -> Mask:
    """Key j is visible to query i if j <= i + L - S, and j > i + L - S - window."""
    shift = 1 if w.shifts_to("one_too_many") else -1 if w.shifts_to("one_too_few") else 0
    triangular = ["trilu"] if w.opset >= 14 else []
    kind = w.pick("ranges", "ranges", *triangular, *(["stored"] if isinstance(place.keys, int) else []))
    if kind == "stored":
        rows, columns = np.indices((place.queries, place.keys))
        offset = columns - rows - (place.keys - place.queries) - shift
        grid = (offset <= 0) & ((offset > -window) if window else True)
        value = w.constant(grid.reshape(1, 1, *grid.shape), "bool")
    else:
        value = (_ranges if kind == "ranges" else _trilu)(w, place, window, shift)
        value = w.unsqueeze(w.unsqueeze(value, 0), 0) if value.rank == 2 else value

    def seen(sizes, feeds):
        queries, keys = (evaluated(size, sizes) for size in (place.queries, place.keys))
        offset = np.arange(keys)[None] - np.arange(queries)[:, None] - (keys - queries) - shift
        grid = (offset <= 0) & ((offset > -window) if window else True)
        return grid[None]

    return Mask(value, seen)


def _count(w: Writer, source: Value, axis: int) -> Value:
    """The size of an axis as a scalar."""
    size = w.size(source, axis)
    return w.squeeze(size, 0) if w.coin() else w.reshape(size, ())


def _range(w: Writer, start: Value, end: Value, size: Dim) -> Value:
    return w.node("Range", start, end, w.constant(1, "int64"), shape=(size,), dtype="int64")


def _ranges(w: Writer, place: Place, window: int, shift: int) -> Value:
    """Comparison of key positions with query positions."""
    zero = w.constant(0, "int64")
    total, count = _count(w, place.key, 2), _count(w, place.query, 2)
    keys = w.unsqueeze(_range(w, zero, total, place.keys), 0)
    start = w.node("Sub", total, count, shape=()) if place.has_past or w.coin() else zero
    if w.coin():
        queries = _range(w, start, total, place.queries)
    else:
        queries = w.add(_range(w, zero, count, place.queries), start)
    queries = w.unsqueeze(queries, 1)
    if shift:
        queries = w.add(queries, w.constant(shift, "int64"))
    shape = (place.queries, place.keys)
    seen = _compared(w, keys, queries, shape)
    if not window:
        return seen
    first = w.node("Sub", queries, w.constant(window, "int64"), shape=queries.shape)
    recent = (
        w.node("Greater", keys, first, shape=shape, dtype="bool")
        if w.coin()
        else w.node("Less", first, keys, shape=shape, dtype="bool")
    )
    return w.node("And", *w.random.sample([seen, recent], 2), shape=shape)


def _compared(w: Writer, keys: Value, queries: Value, shape) -> Value:
    """keys <= queries"""
    kind = w.pick("LessOrEqual", "GreaterOrEqual", "Greater", "Less")
    if kind == "LessOrEqual":
        return w.node("LessOrEqual", keys, queries, shape=shape, dtype="bool")
    if kind == "GreaterOrEqual":
        return w.node("GreaterOrEqual", queries, keys, shape=shape, dtype="bool")
    operands = (keys, queries) if kind == "Greater" else (queries, keys)
    hidden = w.node(kind, *operands, shape=shape, dtype="bool")
    return w.node("Not", hidden, shape=shape)


def _trilu(w: Writer, place: Place, window: int, shift: int) -> Value:
    """A triangle of ones."""
    shape = (place.queries, place.keys)
    size = w.node("Concat", w.size(place.query, 2), w.size(place.key, 2), shape=(2,), axis=0)
    ones = w.expand_to(w.constant(1.0, "float32"), size, shape)
    count = w.node("Sub", _count(w, place.key, 2), _count(w, place.query, 2), shape=())

    def diagonal(number: int) -> Value:
        return w.add(count, w.constant(number, "int64")) if number else count

    if w.coin() or window:
        lower = w.node("Trilu", ones, diagonal(shift), shape=shape, upper=0)
    else:  # what is above the diagonal is hidden
        upper = w.node("Trilu", ones, diagonal(shift + 1), shape=shape, upper=1)
        lower = w.node("Sub", w.constant(1.0, "float32"), upper, shape=shape)
    if window:
        lower = w.node("Trilu", lower, diagonal(shift - window + 1), shape=shape, upper=1)
    return w.node("Cast", lower, shape=shape, dtype="bool", to=9)


def padding(w: Writer, place: Place) -> Mask:
    """A key is visible where attention_mask [B, L] is not zero."""
    mask = w.input("attention_mask", (place.batch, place.keys), w.fixed("int64", "int64", "int32", "bool"))
    sees_new = not place.has_past

    def feed(shape, draw):
        made = draw.integers(0, 2, shape)
        made[:, -1] = 1
        if sees_new:
            made[:, 0] = 1
        return made

    w.feeders[mask.name] = feed
    value = mask
    if mask.dtype != "bool":
        kind = w.pick("cast", "compared", "not")
        if kind == "cast":
            value = w.node("Cast", mask, shape=mask.shape, dtype="bool", to=9)
        elif kind == "compared":
            value = w.node("Greater", mask, w.constant(0, mask.dtype), shape=mask.shape, dtype="bool")
        else:
            empty = w.node("Equal", mask, w.constant(0, mask.dtype), shape=mask.shape, dtype="bool")
            value = w.node("Not", empty, shape=mask.shape)
    reversed_ = w.shifts_to("padding_reversed")
    if reversed_:
        value = w.node("Not", value, shape=value.shape)
    value = w.unsqueeze(w.unsqueeze(value, 1), 1)
    return Mask(value, lambda sizes, feeds: ((feeds[mask.name] != 0) != reversed_)[:, None])


def both(w: Writer, a: Mask, b: Mask) -> Mask:
    """Visible by both masks."""
    pair = w.random.sample([a.value, b.value], 2)
    value = w.node("And", *pair, shape=broadcast(a.value.shape, b.value.shape))
    return Mask(value, lambda sizes, feeds: a.seen(sizes, feeds) & b.seen(sizes, feeds))


# ---- how a mask reaches the scores -----------------------------------------------------------------------------------


def additive(w: Writer, mask: Mask, dtype: str, hidden: float) -> Value:
    """0 where a key is visible, `hidden` where it is not."""
    shape = mask.value.shape
    if np.isinf(hidden) or w.coin():
        zero, low = w.scalar_of(0.0, dtype), w.scalar_of(hidden, dtype)
        if w.coin():
            return w.node("Where", mask.value, zero, low, shape=shape, dtype=dtype)
        unseen = w.node("Not", mask.value, shape=shape)
        return w.node("Where", unseen, low, zero, shape=shape, dtype=dtype)
    number = w.node("Cast", mask.value, shape=shape, dtype=dtype, to=DTYPES[dtype])
    missing = w.node("Sub", w.scalar_of(1.0, dtype), number, shape=shape)
    return w.node("Mul", *w.random.sample([missing, w.scalar_of(hidden, dtype)], 2), shape=shape, dtype=dtype)


def widened(w: Writer, value: Value, place: Place) -> Value:
    """A mask now and then expanded to all batches or heads; one axis more beside heads apart by group."""
    if place.apart:
        return w.unsqueeze(value, 1)
    if not w.coin(0.2):
        return value
    heads = place.heads if w.coin(0.3) else 1
    shape = (place.batch, heads, place.queries, place.keys)
    sizes = [w.size(place.query, 0), w.integers(heads), w.size(place.query, 2), w.size(place.key, 2)]
    return w.node("Expand", value, w.node("Concat", *sizes, shape=(4,), dtype="int64", axis=0), shape=shape)
