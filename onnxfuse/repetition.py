"""Tables that hold each entry twice, found by evaluation: a rotary table has one entry for the two features of a pair.

Exporters stack, expand, gather or tile the entries, and put the axis of the heads in before or after that. Between the
entries and the table are only nodes that move numbers, so a few runs on random ones show which entry ends up where.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from onnxfuse import dims
from onnxfuse.evaluation import Cone, cone
from onnxfuse.facts import Facts

MOVEMENTS = {"Unsqueeze", "Squeeze", "Reshape", "Expand", "Tile", "Concat", "Slice", "Split", "Gather", "Transpose"}
RUNS = 3
NUMBERS = 256  # whole numbers below this are exact in every dtype
LARGEST = 1 << 22  # elements of the largest table that is evaluated


def entries(table: ir.Value, heads_axis: int, interleaved: bool, facts: Facts) -> ir.Value | None:
    """The value [B|1, S, W/2] or [S, W/2] that `table` repeats: its halves are equal, or its neighbours if interleaved.

    `table` is broadcast against [.., .., .., W] with the heads on `heads_axis`; it is float, as are the entries, whose
    dtype may be another one. None if there is no such value, or if it is not known to be repeated for every size.
    """
    known = facts.memory.setdefault(entries, {})
    asked = (table, heads_axis, interleaved)
    if asked not in known:
        known[asked] = _entries(table, heads_axis, interleaved, facts)
    return known[asked]


def _entries(table: ir.Value, heads_axis: int, interleaved: bool, facts: Facts) -> ir.Value | None:
    shape = facts.shape(table)
    whole = (1,) * (4 - len(shape)) + shape
    batch, length, width = (size for axis, size in enumerate(whole) if axis != heads_axis)
    if whole[heads_axis] != 1 or not isinstance(width, int) or width % 2:
        return None
    shapes = [(batch, length, width // 2), *([(length, width // 2)] if batch == 1 else [])]
    found = [value for value in _moved(table, facts) if facts.shape(value) in shapes]
    for value in reversed(found):
        behind = cone(table, facts, [value])
        if behind is not None and behind.inputs == [value] and _repeats(behind, value, interleaved, facts):
            return value
    return None


def _moved(table: ir.Value, facts: Facts) -> Iterator[ir.Value]:
    """The values that end up in the table, the nearest first."""
    node = table.producer()
    while node is not None and not node.domain:
        to_another_float = node.op_type == "Cast" and facts.dtype(node.inputs[0]).is_floating_point()
        if node.op_type not in MOVEMENTS and not to_another_float:
            return
        yield node.inputs[0]
        node = node.inputs[0].producer()


def _repeats(behind: Cone, source: ir.Value, interleaved: bool, facts: Facts) -> bool:
    """Whether the table is the source with each entry twice, in every run."""
    names, draw, numbers = sorted(behind.symbols()), random.Random(0), np.random.default_rng(0)
    for _ in range(RUNS):
        sizes = {name: draw.randint(1, 9) for name in names}
        shape = [dims.evaluate(size, sizes) for size in facts.shape(source)]
        if math.prod(shape) > LARGEST:
            return False
        once = numbers.integers(0, NUMBERS, shape).astype(facts.dtype(source).numpy())
        try:
            table = behind.run(sizes, {source.name: once})
        except RuntimeError:
            return False
        twice = np.repeat(once, 2, axis=-1) if interleaved else np.concatenate([once, once], axis=-1)
        if not np.array_equal(table.reshape(-1), twice.reshape(-1)):
            return False
    return True
