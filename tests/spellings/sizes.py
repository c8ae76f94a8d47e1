"""Sizes that may be open: an int, or an expression such as "P+S" over the sizes that a model leaves open."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

Dim = int | str


def evaluated(size: Dim, sizes: Mapping[str, int]) -> int:
    """An open size at these sizes."""
    return size if isinstance(size, int) else eval(size, {}, dict(sizes))


def broadcast(a: Sequence[Dim], b: Sequence[Dim]) -> tuple[Dim, ...]:
    """The shape in which two shapes meet."""
    rank = max(len(a), len(b))
    pairs = zip((1,) * (rank - len(a)) + tuple(a), (1,) * (rank - len(b)) + tuple(b), strict=True)
    return tuple(y if x == 1 else x for x, y in pairs)


def joined(sizes: Sequence[Dim]) -> Dim:
    """The size of a concatenation."""
    return sum(sizes) if all(isinstance(s, int) for s in sizes) else "+".join(map(str, sizes))


def merged(sizes: Sequence[Dim]) -> Dim:
    """The size of axes that are merged."""
    if all(isinstance(s, int) for s in sizes):
        return math.prod(sizes)
    return "*".join(map(str, sizes))
