"""Cases of SkipRMSNorm."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from onnxfuse.custom_ops.case import EPSILON, MIXED_DTYPES, Case, Random

SHAPES = [(1,), (2, 3, 5), (2, 3, 8), (1, 4, 15), (2, 17), (1, 5, 67), (1, 1, 2048), (2, 0, 8), (1, 64, 512)]
BENCHMARKS = [(1, 1, 4096), (1, 128, 4096), (1, 2048, 4096)]


def cases() -> Iterator[Case]:
    """Every kernel on odd shapes and on the shapes of Llama-2-7B."""
    for dtypes in MIXED_DTYPES:
        for shape in SHAPES:
            yield case(shape, *dtypes)
        for shape in BENCHMARKS:
            yield case(shape, *dtypes, benchmark=True)


def refused() -> Iterator[tuple[Case, str]]:
    """Inputs that the kernel refuses, and what it says."""
    good = case((2, 3, 8), "float32", "float32")
    yield replace(good, inputs={**good.inputs, "skip": Random((3, 8))}, name="skip"), "skip is [3,8], expected"
    yield replace(good, inputs={**good.inputs, "weight": Random((3,))}, name="weight"), "weight is [3], expected [8]"


def case(shape: tuple[int, ...], dtype: str, weight_dtype: str, *, benchmark: bool = False) -> Case:
    return Case(
        name=f"{'x'.join(map(str, shape))}-{dtype}-{weight_dtype}",
        inputs={"x": Random(shape, dtype), "skip": Random(shape, dtype), "weight": Random(shape[-1:], weight_dtype)},
        outputs={"y": dtype, "sum": dtype},
        attributes={"epsilon": 1e-5},
        # As for RMSNorm: the sum is rounded the same way by the reference.
        relative=EPSILON[dtype] / 2 + 6 * EPSILON["float32"],
        absolute=3e-8 if dtype == "float16" else 0.0,  # half the spacing of subnormal numbers
        benchmark=benchmark,
    )
