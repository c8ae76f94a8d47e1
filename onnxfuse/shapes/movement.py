"""Operators that move elements."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxfuse import dims
from onnxfuse.dims import Size
from onnxfuse.shapes.fact import (
    CONTENT_LIMIT,
    SENTINEL,
    Call,
    Fact,
    Shape,
    broadcast_shape,
    is_followed,
    product,
    rule,
)


@rule("Gather")
def gather(call: Call) -> Fact:
    data, indices = call[0], call[1]
    if data.shape is None or indices.shape is None:
        return Fact(data.dtype)
    axis = call.attr("axis", 0) % len(data.shape)
    shape = data.shape[:axis] + indices.shape + data.shape[axis + 1 :]
    content = None
    picks = indices.integers()
    if data.content is not None and picks is not None and all(isinstance(p, int) for p in picks):
        index = np.array(picks, dtype=np.int64).reshape(indices.content.shape)
        content = np.asarray(np.take(data.content, index, axis=axis), dtype=object)
    return Fact(data.dtype, shape, content)


@rule("Embedding")
def embedding(call: Call) -> Fact:
    ids, table = call[0].shape, call[1].shape
    return Fact(call[1].dtype, None if ids is None or table is None else (*ids, table[1]))


@rule("GatherND")
def gather_nd(call: Call) -> Fact:
    data, indices, batch = call[0], call[1], call.attr("batch_dims", 0)
    if data.shape is None or indices.shape is None or not isinstance(indices.shape[-1], int):
        return Fact(data.dtype)
    return Fact(data.dtype, indices.shape[:-1] + data.shape[batch + indices.shape[-1] :])


@rule("GatherElements")
def gather_elements(call: Call) -> Fact:
    return Fact(call[0].dtype, call[1].shape)


@rule("Concat")
def concat(call: Call) -> Fact:
    facts = [call[i] for i in range(len(call.inputs))]
    known = [f for f in facts if f.shape is not None]
    if not known:
        return Fact(facts[0].dtype)
    axis = call.attr("axis") % len(known[0].shape)
    if len(known) < len(facts):
        return Fact(facts[0].dtype, call.fresh(len(known[0].shape)))
    total: Size = 0
    for fact in facts:
        total = total + fact.shape[axis]
    # off the axis all inputs agree in any valid run: the first plain integer says most
    shape = tuple(
        total if i == axis else next((s for s in sizes if isinstance(s, int)), sizes[0])
        for i, sizes in enumerate(zip(*(f.shape for f in facts), strict=True))
    )
    content = None
    if is_followed(facts[0].dtype) and isinstance(total, int) and len(shape) == 1 and total <= CONTENT_LIMIT:
        content = np.concatenate([_entries(f) for f in facts])
    return Fact(facts[0].dtype, shape, content)


def _entries(fact: Fact) -> np.ndarray:
    """The content of a one-dimensional value, unknown entries included."""
    return fact.content if fact.content is not None else np.full(fact.shape, None, dtype=object)


@rule("Slice")
def slice_of(call: Call) -> Fact:
    data = call[0]
    if data.shape is None:
        return Fact(data.dtype)
    starts, ends = call.listed("starts", 1), call.listed("ends", 2)
    axes = call.listed("axes", 3)
    steps = call[4].integers() if call.has(4) else None
    if starts is None or ends is None or (axes is None and call.has(3)) or (steps is None and call.has(4)):
        return Fact(data.dtype, _sliced_unknown(call, axes))
    axes = [a % len(data.shape) for a in axes] if axes else list(range(len(starts)))
    steps = steps or [1] * len(starts)
    shape, index = list(data.shape), [slice(None)] * len(data.shape)
    content = data.content
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        length = slice_length(data.shape[axis], start, end, step)
        shape[axis] = length if length is not None else call.fresh(len(shape))[axis]
        if isinstance(start, int) and isinstance(end, int):
            index[axis] = slice(start, end, step)
        else:
            content = None
    return Fact(data.dtype, tuple(shape), None if content is None else content[tuple(index)])


def _sliced_unknown(call: Call, axes: list[Size] | None) -> Shape:
    shape, fresh = call[0].shape, call.fresh(len(call[0].shape))
    if axes is None:
        return fresh
    touched = {a % len(shape) for a in axes}
    return tuple(fresh[i] if i in touched else s for i, s in enumerate(shape))


def slice_length(size: Size, start: Size, end: Size, step: int) -> Size | None:
    """How many entries of `size` a Slice keeps; None: unknown."""
    if all(isinstance(v, int) for v in (size, start, end, step)):
        return len(range(size)[start:end:step])
    if not isinstance(step, int) or step < 1:
        return None
    first = _from_the_front(start, size)
    if dims.is_nonnegative(first) and (isinstance(end, int) or dims.is_nonnegative(end)):
        length = dims.minimum(_from_the_front(end, size), size) - first
        if not dims.is_nonnegative(length):
            length = dims.maximum(length, 0)
    else:
        length = dims.sliced(size, start, end)
    return length if step == 1 else dims.floor_div(length + (step - 1), step)


def _from_the_front(index: Size, size: Size) -> Size:
    """A Slice's start or end, where it is known to count from the back: below zero what lies before the first entry."""
    if not isinstance(index, int):
        return index
    if abs(index) >= SENTINEL:
        return size if index > 0 else 0
    return size + index if index < 0 else index


@rule("Split")
def split(call: Call) -> Sequence[Fact]:
    data, count = call[0], len(call.node.outputs)
    if data.shape is None:
        return [Fact(data.dtype)] * count
    axis = call.attr("axis", 0) % len(data.shape)
    parts = call.listed("split", 1)
    if parts is None:
        size = data.shape[axis]
        if isinstance(size, int):
            chunk = -(-size // count)
            parts = [min(chunk, size - i * chunk) for i in range(count)]
        else:
            parts = [call.fresh(len(data.shape), i)[axis] for i in range(count)]
    return [Fact(data.dtype, (*data.shape[:axis], part, *data.shape[axis + 1 :])) for part in parts]


@rule("Unsqueeze")
def unsqueeze(call: Call) -> Fact:
    axes = call.listed("axes", 1)
    if call[0].shape is None or axes is None:
        return Fact(call[0].dtype)
    rank = len(call[0].shape) + len(axes)
    axes = sorted(a % rank for a in axes)
    shape = list(call[0].shape)
    content = call[0].content
    for axis in axes:
        shape.insert(axis, 1)
        content = None if content is None else np.expand_dims(content, axis)
    return Fact(call[0].dtype, tuple(shape), content)


@rule("Squeeze")
def squeeze(call: Call) -> Fact:
    shape = call[0].shape
    if shape is None:
        return Fact(call[0].dtype)
    axes = call.listed("axes", 1)
    if axes is None:
        if call.has(1) or not all(isinstance(s, int) for s in shape):
            return Fact(call[0].dtype)  # which symbolic sizes are one is not known
        axes = [i for i, s in enumerate(shape) if s == 1]
    gone = {a % len(shape) for a in axes}
    kept = tuple(s for i, s in enumerate(shape) if i not in gone)
    content = call[0].content
    return Fact(call[0].dtype, kept, None if content is None else content.reshape(kept))


@rule("Reshape")
def reshape(call: Call) -> Fact:
    data, target = call[0], call[1].integers() if call[1].content is not None else None
    entries = None if call[1].content is None else list(call[1].content.reshape(-1))
    if entries is None or data.shape is None:
        return Fact(data.dtype, call.fresh_of_length(1) if entries is None else call.fresh(len(entries)))
    if target is None:
        fresh = call.fresh(len(entries))
        return Fact(data.dtype, tuple(f if e is None else e for f, e in zip(fresh, entries, strict=True)))
    shape = reshaped(data.shape, target, bool(call.attr("allowzero", 0)))
    if shape is None:
        return Fact(data.dtype, call.fresh(len(target)))
    content = data.content
    if content is not None:
        content = content.reshape(-1).reshape([s if isinstance(s, int) else -1 for s in shape])
    return Fact(data.dtype, shape, content)


def reshaped(shape: Shape, target: Sequence[Size], allow_zero: bool) -> Shape | None:
    """The shape that Reshape gives: 0 copies (unless `allow_zero`), -1 takes what is left.

    So does the one size that may be a cut of another, as a table's rows are: the Reshape would fail if it were less.
    """
    out: list[Size] = [shape[i] if t == 0 and not allow_zero and i < len(shape) else t for i, t in enumerate(target)]
    if -1 in out:
        hole = out.index(-1)
        left = _what_is_left(shape, [s for i, s in enumerate(out) if i != hole])
        if left is None:
            return None
        out[hole] = left
        return tuple(out)
    cuts = [i for i, size in enumerate(out) if dims.may_be_a_cut(size) and size not in shape]
    left = _what_is_left(shape, [s for i, s in enumerate(out) if i != cuts[0]]) if len(cuts) == 1 else None
    if left is not None and not dims.may_be_a_cut(left):
        out[cuts[0]] = left
    return tuple(out)


def _what_is_left(shape: Shape, taken: Sequence[Size]) -> Size | None:
    """The size that beside those `taken` gives as many elements as `shape` has."""
    # sizes that stand on both sides cancel, which keeps the quotient exact for any polynomial
    total, rest = list(shape), list(taken)
    for size in taken:
        if size in total:
            total.remove(size)
            rest.remove(size)
    denominator = product(rest)
    return None if denominator == 0 else dims.floor_div(product(total), denominator)


@rule("Flatten")
def flatten(call: Call) -> Fact:
    shape = call[0].shape
    if shape is None:
        return Fact(call[0].dtype, call.fresh(2))
    axis = call.attr("axis", 1)
    axis = axis % len(shape) if axis < 0 else axis
    return Fact(call[0].dtype, (product(shape[:axis]), product(shape[axis:])))


@rule("Transpose")
def transpose(call: Call) -> Fact:
    shape = call[0].shape
    if shape is None:
        return Fact(call[0].dtype)
    perm = call.attr("perm", list(reversed(range(len(shape)))))
    content = call[0].content
    return Fact(call[0].dtype, tuple(shape[p] for p in perm), None if content is None else content.transpose(perm))


@rule("Expand")
def expand(call: Call) -> Fact:
    data, target = call[0], call[1].integers()
    if target is None or data.shape is None:
        ranked = call.fresh_of_length(1)
        return Fact(data.dtype, ranked if ranked is None or data.rank is None or len(ranked) >= data.rank else None)
    shape = broadcast_shape(data.shape, tuple(target))
    content = None
    if data.content is not None and all(isinstance(s, int) for s in shape) and product(shape) <= CONTENT_LIMIT:
        content = np.broadcast_to(data.content, shape)
    return Fact(data.dtype, shape, content)


@rule("Tile")
def tile(call: Call) -> Fact:
    repeats = call[1].integers()
    if call[0].shape is None or repeats is None:
        return Fact(call[0].dtype, None if call[0].shape is None else call.fresh(len(call[0].shape)))
    return Fact(call[0].dtype, tuple(s * r for s, r in zip(call[0].shape, repeats, strict=True)))
