"""Cases of RotaryTable."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from onnxfuse.custom_ops.case import EPSILON, Case

BENCHMARKS = [(1, 1, 64), (1, 2048, 64)]


def cases() -> Iterator[Case]:
    """Odd shapes, positions far away and negative, angles beyond the quick reduction, and the tables of Llama-2-7B."""
    yield case("first", np.arange(7)[None], frequencies(5))
    yield case("batch", np.array([[0, 1, 2], [900, 901, 902]]), frequencies(16))
    yield case("odd", np.arange(33).reshape(3, 11), frequencies(17), scale=1.1384)
    yield case("far", 999_983 + np.arange(20).reshape(2, 10), frequencies(64))
    yield case("negative", -np.arange(10)[None], frequencies(32))
    yield case("huge", np.array([[2**40, -(2**50), 2**24 + 1]]), frequencies(9))
    yield case("empty batch", np.zeros((0, 3)), frequencies(4))
    yield case("empty length", np.zeros((2, 0)), frequencies(4))
    yield replace(case("scale left out", np.arange(6).reshape(2, 3), frequencies(4)), attributes={})
    for batch, length, count in BENCHMARKS:
        positions = np.tile(np.arange(length), (batch, 1))
        yield case(f"{batch}x{length}x{count}", positions, frequencies(count), benchmark=True)


def refused() -> Iterator[tuple[Case, str]]:
    """Inputs that the kernel refuses, and what it says."""
    yield case("rank of positions", np.arange(3), frequencies(4)), "position_ids is [3], expected [batch, length]"
    yield (
        case("rank of inv_freq", np.arange(3)[None], frequencies(4)[None]),
        "inv_freq is [1,4], expected [frequencies]",
    )


def frequencies(count: int) -> np.ndarray:
    return (10000.0 ** -(np.arange(count) / count)).astype(np.float32)


def case(
    name: str, positions: np.ndarray, inv_freq: np.ndarray, *, scale: float = 1.0, benchmark: bool = False
) -> Case:
    return Case(
        name=name,
        inputs={"position_ids": positions.astype(np.int64), "inv_freq": inv_freq},
        outputs={"cos": "float32", "sin": "float32"},
        attributes={"scale": scale},
        relative=1.05 * EPSILON["float32"],  # cos or sin and the product with scale are rounded, half a unit each
        body_absolute=EPSILON["float32"],  # the runtime's Cos and Sin are exact to a unit of 1, not of themselves
        benchmark=benchmark,
    )
