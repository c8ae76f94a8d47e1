"""Cases of RMSNorm."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from onnxfuse.custom_ops.case import EPSILON, MIXED_DTYPES, Case, Random

SHAPES = [
    (1,),
    (3, 1),
    (2, 3, 5),
    (2, 3, 8),
    (1, 4, 15),
    (3, 16),
    (2, 17),
    (1, 5, 67),
    (1, 1, 2048),
    (0, 8),
    (2, 0, 8),
    (1, 64, 512),
]
BENCHMARKS = [(1, 1, 4096), (1, 128, 4096), (1, 2048, 4096)]


def cases() -> Iterator[Case]:
    """Every kernel on odd shapes, on small and large numbers, and on the shapes of Llama-2-7B."""
    for dtypes in MIXED_DTYPES:
        for shape in SHAPES:
            yield case(shape, *dtypes)
        yield case((2, 64), *dtypes, scale=1e-3)
        yield case((2, 64), *dtypes, scale=1e3, epsilon=1e-6)
        for shape in BENCHMARKS:
            yield case(shape, *dtypes, benchmark=True)


def refused() -> Iterator[tuple[Case, str]]:
    """Inputs that the kernel refuses, and what it says."""
    good = case((2, 3, 8), "float32", "float32")
    yield (
        replace(good, inputs={**good.inputs, "weight": Random((5,))}, name="weight size"),
        "weight is [5], expected [8]",
    )
    yield replace(good, inputs={**good.inputs, "weight": Random((1, 8))}, name="weight rank"), "weight is [1,8]"
    yield replace(good, inputs={"x": Random(()), "weight": Random((1,))}, name="scalar"), "x is a scalar"
    yield replace(good, attributes={}, name="no epsilon"), "attribute epsilon is missing"
    yield replace(good, attributes={"epsilon": 1}, name="epsilon type"), "attribute epsilon is not a float"


def case(
    shape: tuple[int, ...],
    dtype: str,
    weight_dtype: str,
    *,
    epsilon: float = 1e-5,
    scale: float = 1.0,
    benchmark: bool = False,
) -> Case:
    return Case(
        name=f"{'x'.join(map(str, shape))}-{dtype}-{weight_dtype}-scale{scale:g}-epsilon{epsilon:g}",
        inputs={"x": Random(shape, dtype, scale), "weight": Random(shape[-1:], weight_dtype)},
        outputs={"y": dtype},
        attributes={"epsilon": epsilon},
        # The last rounding, and in float32 two products and the factor, whose own error is a few units.
        relative=EPSILON[dtype] / 2 + 6 * EPSILON["float32"],
        absolute=3e-8 if dtype == "float16" else 0.0,  # half the spacing of subnormal numbers
        benchmark=benchmark,
    )
