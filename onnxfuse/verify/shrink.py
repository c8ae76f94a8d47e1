"""Smaller weights for verification: a product of matrices is right for 4096 columns if it is right for 32.

Where weights are large and no integer in either graph relates to their sizes, all large sizes are divided by one
factor, so that equal sizes stay equal and whole multiples stay whole multiples.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxfuse.facts import SMALL
from onnxfuse.verify.slices import Slice

LARGE_WEIGHTS = 8 << 20  # bytes of drawn weights from which it is worth it
LARGE_SIZE = 512  # dimensions that are divided
SMALLEST_SIZE = 32  # what the greatest common divisor becomes; packed weights come in panels of 32
SMALL_NUMBER = 16  # integers below say nothing about sizes: axes, dtypes, ranks


@dataclass(frozen=True)
class Shrinking:
    """Which sizes are drawn smaller; `factor` is 1 if none is."""

    sizes: frozenset[int] = frozenset()
    factor: int = 1

    def size(self, size: int) -> int:
        """The size to draw for a dimension of `size`."""
        return size // self.factor if size in self.sizes else size

    @classmethod
    def of(cls, before: Slice, after: Slice, functions: Iterable[ir.Function]) -> Shrinking:
        """How to shrink the weights of two slices that are compared."""
        facts = before.facts
        weights = {value: facts.tensor(value) for value in (*before.inputs, *after.inputs) if facts.is_constant(value)}
        if sum(tensor.nbytes for tensor in weights.values()) < LARGE_WEIGHTS:
            return cls()
        sizes = {size for tensor in weights.values() for size in tensor.shape if size >= LARGE_SIZE}
        sizes -= _selected_from(before)
        common = math.gcd(*sizes)
        if common <= SMALLEST_SIZE or common % SMALLEST_SIZE:
            return cls()
        numbers = set(_numbers_of((before, after), functions))
        if any(size % number == 0 or number % size == 0 for number in numbers for size in sizes):
            return cls()
        return cls(frozenset(sizes), common // SMALLEST_SIZE)


def _selected_from(piece: Slice) -> set[int]:
    """Sizes of axes that tokens or positions select from: they are drawn from all there are."""
    selecting = [node for node in piece.nodes if node.op_type == "Gather" and not node.domain]
    shapes = [(node, piece.facts.shape(node.inputs[0])) for node in selecting]
    return {shape[node.attributes.get_int("axis", 0)] for node, shape in shapes if shape}


def _numbers_of(pieces: Iterable[Slice], functions: Iterable[ir.Function]) -> Iterable[int]:
    """Every integer written in the slices or in the bodies of their functions that may stand for a size."""
    used = {(node.domain, node.op_type, node.overload) for piece in pieces for node in piece.nodes}
    nodes = [node for piece in pieces for node in piece.nodes]
    for function in functions:
        if function.identifier() in used:
            nodes.extend(function)
    for piece in pieces:
        for value in piece.constants:
            yield from _integers(piece.facts.tensor(value))
        for value in piece.known:
            yield from (entry for entry in piece.facts.content(value) if _is_size(entry))
    for node in nodes:
        for attribute in node.attributes.values():
            if attribute.is_ref() or attribute.name in ("to", "dtype"):
                continue
            if attribute.type == ir.AttributeType.INT:
                yield from [attribute.value] if _is_size(attribute.value) else []
            elif attribute.type == ir.AttributeType.INTS:
                yield from (number for number in attribute.value if _is_size(number))
            elif attribute.type == ir.AttributeType.TENSOR:
                yield from _integers(attribute.value)


def _integers(tensor: ir.TensorProtocol) -> list[int]:
    if not tensor.dtype.is_integer() or tensor.size > SMALL:
        return []
    return [int(number) for number in np.unique(tensor.numpy()) if _is_size(int(number))]


def _is_size(number: object) -> bool:
    return isinstance(number, int) and SMALL_NUMBER <= number < 2**31 - 1
