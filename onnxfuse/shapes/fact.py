"""Facts about values, and the registry of rules that derive them.

A rule takes a `Call` (a node with the facts of its inputs) and returns the facts of its outputs, None for what it does
not know.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx_ir as ir

from onnxfuse import dims
from onnxfuse.dims import Size

CONTENT_LIMIT = 64  # elements up to which an integer tensor's content is followed
SENTINEL = 2**31 - 1  # exporters write this or more (or its negative) for "to the end" in a Slice

Shape = tuple[Size, ...]


@dataclass(frozen=True)
class Fact:
    """What is known about one value. `content` is an object array of int, bool or Dim (None: that entry is unknown)."""

    dtype: ir.DataType | None = None
    shape: Shape | None = None
    content: np.ndarray | None = None

    @property
    def rank(self) -> int | None:
        return None if self.shape is None else len(self.shape)

    def integers(self) -> list[Size] | None:
        """The content as a flat list, if all of it is known."""
        return None if self.content is None or self._entries is None else list(self._entries)

    @cached_property
    def _entries(self) -> tuple[Size, ...] | None:
        flat = tuple(self.content.reshape(-1))
        return None if any(entry is None for entry in flat) else flat


UNKNOWN = Fact()


@dataclass
class Call:
    """A node and the facts of its inputs (None for an absent one)."""

    node: ir.Node
    inputs: tuple[Fact | None, ...]
    opset: int
    names_sizes: bool = False  # whether the answer has sizes named after this node

    def __getitem__(self, index: int) -> Fact:
        fact = self.inputs[index] if index < len(self.inputs) else None
        return UNKNOWN if fact is None else fact

    def has(self, index: int) -> bool:
        return index < len(self.inputs) and self.inputs[index] is not None

    def attr(self, name: str, default=None):
        attribute = self.node.attributes.get(name)
        return default if attribute is None or attribute.is_ref() else attribute.value

    def listed(self, name: str, index: int) -> list[Size] | None:
        """A list of integers that older opsets have as attribute `name` and newer ones as input `index`."""
        attribute = self.attr(name)
        if attribute is not None:
            return list(attribute)
        return self[index].integers() if self.has(index) else None

    def fresh(self, rank: int, output: int = 0) -> Shape:
        """A shape of which only the rank is known."""
        self.names_sizes = True
        name = self.node.outputs[output].name
        return tuple(dims.symbol(f"{name}:{axis}") for axis in range(rank))

    def fresh_of_length(self, index: int) -> Shape | None:
        """A shape of which only the rank is known: the length of the one-dimensional input `index`."""
        target = self[index].shape
        if target is None or len(target) != 1 or not isinstance(target[0], int):
            return None
        return self.fresh(target[0])


Rule = Callable[[Call], "Fact | Sequence[Fact] | None"]
RULES: dict[str, Rule] = {}


def rule(*op_types: str) -> Callable[[Rule], Rule]:
    """Register a rule for these operators, in whatever domain they are."""

    def register(function: Rule) -> Rule:
        for op_type in op_types:
            RULES[op_type] = function
        return function

    return register


def array(values: object) -> np.ndarray:
    """An object array holding `values` (nested lists of int, bool, Dim, None)."""
    return np.array(values, dtype=object)


def followed(shape: Shape | None, content: np.ndarray | None) -> np.ndarray | None:
    """`content` unless it is too large to follow."""
    return content if content is not None and content.size <= CONTENT_LIMIT else None


def elementwise(function: Callable, *operands: np.ndarray | None) -> np.ndarray | None:
    """Apply a function of scalars under broadcasting; unknown where an operand is."""
    if any(o is None for o in operands):
        return None

    def apply(*entries):
        return None if any(e is None for e in entries) else function(*entries)

    try:
        return np.asarray(np.frompyfunc(apply, len(operands), 1)(*operands), dtype=object)
    except ValueError:
        return None


def broadcast_shape(*shapes: Shape | None) -> Shape | None:
    """The shape of numpy broadcasting."""
    if any(s is None for s in shapes):
        return None
    rank = max(map(len, shapes))
    padded = [(1,) * (rank - len(s)) + tuple(s) for s in shapes]
    joined = padded[0]
    for other in padded[1:]:
        joined = tuple(dims.broadcast(a, b) for a, b in zip(joined, other, strict=True))
    return joined


def product(sizes: Sequence[Size]) -> Size:
    """The product of sizes; of none: 1."""
    total: Size = 1
    for size in sizes:
        total = total * size
    return total


def is_followed(dtype: ir.DataType | None) -> bool:
    """Whether contents of this dtype are followed: integers and booleans."""
    return dtype is not None and (dtype.is_integer() or dtype == ir.DataType.BOOL)
