"""Movement of data in all the ways in which exporters write it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from spellings.arithmetic import Arithmetic
from spellings.draft import TO_THE_END, Value
from spellings.sizes import Dim, joined


class Movement(Arithmetic):
    """Axes, parts and shapes."""

    def axis(self, axis: int, rank: int) -> int:
        """An axis counted from either end."""
        axis %= rank
        return axis - rank if self.coin() else axis

    def reduce(self, op: str, a: Value, axis: int = -1, keepdims: bool = True) -> Value:
        """A reduction over one axis, which stays as one of size one."""
        axis, kept = axis % a.rank, keepdims and self.coin(0.7)
        shape = [1 if i == axis else s for i, s in enumerate(a.shape)]
        made = self._reduced(op, a, axis, shape if kept else [s for i, s in enumerate(a.shape) if i != axis], kept)
        return self.unsqueeze(made, axis) if keepdims and not kept else made

    def _reduced(self, op: str, a: Value, axis: int, shape: Sequence[Dim], kept: bool) -> Value:
        axis = self.axis(axis, a.rank)
        as_input = self.opset >= (13 if op == "ReduceSum" else 18)
        axes = {} if as_input else {"axes": [axis]}
        return self.node(op, a, *([self.integers(axis)] if as_input else []), shape=shape, keepdims=int(kept), **axes)

    def unsqueeze(self, a: Value, axis: int) -> Value:
        rank = a.rank + 1
        axis %= rank
        shape = (*a.shape[:axis], 1, *a.shape[axis:])
        if self.coin(0.15):
            return self.reshape(a, shape)
        return self.node("Unsqueeze", a, self.integers(self.axis(axis, rank)), shape=shape)

    def squeeze(self, a: Value, axis: int) -> Value:
        axis %= a.rank
        shape = (*a.shape[:axis], *a.shape[axis + 1 :])
        if self.coin(0.15):
            return self.reshape(a, shape)
        return self.node("Squeeze", a, self.integers(self.axis(axis, a.rank)), shape=shape)

    def transpose(self, a: Value, perm: Sequence[int]) -> Value:
        shape = [a.shape[p] for p in perm]
        if self.coin(0.12) and len(perm) > 2:  # in two steps
            first = self.random.sample(range(len(perm)), len(perm))
            turned = self.node("Transpose", a, shape=[a.shape[p] for p in first], perm=first)
            return self.node("Transpose", turned, shape=shape, perm=[first.index(p) for p in perm])
        if list(perm) == list(range(a.rank))[::-1] and self.coin():
            return self.node("Transpose", a, shape=shape)
        return self.node("Transpose", a, shape=shape, perm=list(perm))

    def concat(self, parts: Sequence[Value], axis: int) -> Value:
        axis %= parts[0].rank
        total = joined([p.shape[axis] for p in parts])
        shape = [total if i == axis else s for i, s in enumerate(parts[0].shape)]
        if len(parts) == 3 and self.coin(0.2):
            return self.concat([self.concat(parts[:2], axis), parts[2]], axis)
        return self.node("Concat", *parts, shape=shape, axis=self.axis(axis, parts[0].rank))

    def slice(self, a: Value, axis: int, start: int, end: int, step: int = 1) -> Value:
        """a[start:end:step] along an axis of known size."""
        axis %= a.rank
        size = a.shape[axis]
        shape = [len(range(size)[start:end:step]) if i == axis else s for i, s in enumerate(a.shape)]
        if end == size:
            end = self.pick(size, *TO_THE_END)
        elif self.coin(0.2):
            end -= size
        if start and self.coin(0.2):
            start -= size
        bounds = [self.bound(start, a, axis), self.bound(end, a, axis), self.integers(self.axis(axis, a.rank))]
        steps = [self.integers(step)] if step != 1 or self.coin() else []
        return self.node("Slice", a, *bounds, *steps, shape=shape)

    def bound(self, number: int, a: Value, axis: int) -> Value:
        """A slice bound: a constant, or half of the axis computed from the shape as TorchScript does."""
        if number * 2 != a.shape[axis] or self.coin(0.7):
            return self.integers(number)
        size = self.size(a, axis)
        half = self.node("Div", size, self.integers(2), shape=(1,))
        return self.cast(self.cast(half, "int64"), "int64")

    def split(self, a: Value, axis: int, parts: Sequence[int]) -> list[Value]:
        """`a` cut along an axis into parts of these sizes: by Split or by Slices."""
        axis %= a.rank
        shapes = [[part if i == axis else s for i, s in enumerate(a.shape)] for part in parts]
        if self.coin(0.4):
            ends = np.cumsum(parts).tolist()
            return [self.slice(a, axis, end - part, end) for part, end in zip(parts, ends, strict=True)]
        where = {"axis": self.axis(axis, a.rank)}
        equal = len(set(parts)) == 1
        if equal and self.coin():
            count = {"num_outputs": len(parts)} if self.opset >= 18 else {}
            return self.node("Split", a, shape=shapes, outputs=len(parts), **where, **count)
        return self.node("Split", a, self.integers(*parts), shape=shapes, outputs=len(parts), **where)

    def size(self, a: Value, axis: int) -> Value:
        """The size of an axis as int64 [1]."""
        axis %= a.rank
        if isinstance(a.shape[axis], int) and self.coin():
            return self.integers(a.shape[axis])
        if self.opset >= 15 and self.coin(0.3):
            return self.node("Shape", a, shape=(1,), dtype="int64", start=axis, end=axis + 1)
        shape = self.node("Shape", a, shape=(a.rank,), dtype="int64")
        if self.coin(0.3):
            return self.node("Slice", shape, self.integers(axis), self.integers(axis + 1), shape=(1,))
        if self.coin():
            return self.node("Gather", shape, self.integers(axis), shape=(1,), axis=0)
        one = self.node("Gather", shape, self.constant(axis, "int64"), shape=(), axis=0)
        return self.node("Unsqueeze", one, self.integers(0), shape=(1,))

    def sizes(self, shape: Sequence[Dim], source: Value) -> Value:
        """A shape as int64 [rank], open sizes read from `source`, which has them."""
        if all(isinstance(s, int) for s in shape):
            return self.integers(*shape)
        parts = [self.integers(s) if isinstance(s, int) else self.size(source, source.shape.index(s)) for s in shape]
        return parts[0] if len(parts) == 1 else self.node("Concat", *parts, shape=(len(parts),), axis=0)

    def reshape(self, a: Value, shape: Sequence[Dim], source: Value | None = None) -> Value:
        """`a` with another shape; the operand is constant where it can be, or computed from shapes."""
        return self.node("Reshape", a, self._target(a, tuple(shape), source or a), shape=shape)

    def _target(self, a: Value, shape: tuple[Dim, ...], source: Value) -> Value:
        plain = [s if isinstance(s, int) else 0 if i < a.rank and a.shape[i] == s else -1 for i, s in enumerate(shape)]
        zero_size = any(s == 0 for s in shape)
        if plain.count(-1) <= 1 and not zero_size and self.coin(0.6):
            if plain.count(-1) == 0 and plain and self.coin(0.4):
                plain[self.random.randrange(len(plain))] = -1
            return self.integers(*plain)
        unknown = [i for i, s in enumerate(shape) if isinstance(s, str) and s not in source.shape]
        open_sizes = [-1 if i in unknown else s for i, s in enumerate(shape)]
        if not unknown and shape and not zero_size and self.coin(0.4):
            open_sizes[self.random.randrange(len(shape))] = -1
        if len(unknown) > 1:
            raise ValueError(f"no value has the sizes {[shape[i] for i in unknown]}")
        return self.sizes(open_sizes, source)

    def expand(self, a: Value, shape: Sequence[Dim], source: Value) -> Value:
        """`a` broadcast to `shape`."""
        return self.node("Expand", a, self.sizes(shape, source), shape=shape)

    def expand_to(self, a: Value, sizes: Value, shape: Sequence[Dim]) -> Value:
        """`a` broadcast to a shape that is at hand as integers."""
        return self.node("Expand", a, sizes, shape=shape)

    def gather(self, a: Value, indices: Sequence[int] | int, axis: int) -> Value:
        axis %= a.rank
        index = np.asarray(indices)
        shape = (*a.shape[:axis], *index.shape, *a.shape[axis + 1 :])
        return self.node("Gather", a, self.constant(index, "int64"), shape=shape, axis=self.axis(axis, a.rank))
