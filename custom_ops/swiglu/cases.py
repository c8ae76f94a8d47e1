"""Cases of SwiGLU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from onnxfuse.custom_ops.case import DTYPES, EPSILON, Case, Random

SHAPES = [(), (1,), (2, 3, 5), (16,), (2, 3, 8), (1, 4, 15), (2, 1, 37), (0, 8), (1, 2, 11008), (8, 4096)]
BENCHMARKS = [(1, 1, 11008), (1, 128, 11008), (1, 2048, 11008)]


def cases() -> Iterator[Case]:
    """Every kernel on odd shapes, on gates that saturate the sigmoid, and on the shapes of Llama-2-7B."""
    for dtype in DTYPES:
        for shape in SHAPES:
            yield case(shape, dtype)
        yield case((2, 333), dtype, scale=30.0)
        for shape in BENCHMARKS:
            yield case(shape, dtype, benchmark=True)


def refused() -> Iterator[tuple[Case, str]]:
    """Inputs that the kernel refuses, and what it says."""
    good = case((2, 3, 8), "float32")
    yield replace(good, inputs={**good.inputs, "up": Random((2, 8, 3))}, name="up"), "up is [2,8,3], expected the shape"


def case(shape: tuple[int, ...], dtype: str, *, scale: float = 1.0, benchmark: bool = False) -> Case:
    return Case(
        name=f"{'x'.join(map(str, shape)) or 'scalar'}-{dtype}-scale{scale:g}",
        inputs={"gate": Random(shape, dtype, scale), "up": Random(shape, dtype)},
        outputs={"y": dtype},
        # The last rounding, and in float32 exp, a sum, a quotient and a product.
        relative=EPSILON[dtype] / 2 + 5 * EPSILON["float32"],
        absolute=3e-8 if dtype == "float16" else 1e-37,  # where the result is subnormal
        # The runtime's Sigmoid is exact to a unit of 1, not of itself; gate and up are below 5 times their scale.
        body_absolute=25 * scale * EPSILON["float32"],
        benchmark=benchmark,
    )
