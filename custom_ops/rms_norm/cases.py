"""Cases of RMSNorm."""

from __future__ import annotations

from collections.abc import Iterator

from onnxfuse.custom_ops.case import EPSILON, Case, Random

# x's dtype and weight's dtype: every kernel there is.
DTYPES = [
    ("float32", "float32"),
    ("float16", "float16"),
    ("float16", "float32"),
    ("bfloat16", "bfloat16"),
    ("bfloat16", "float32"),
]
SHAPES = [(1,), (3, 1), (2, 3, 5), (2, 3, 8), (1, 4, 15), (3, 16), (2, 17), (1, 5, 67), (1, 1, 2048), (0, 8), (2, 0, 8)]
BENCHMARKS = [(1, 1, 4096), (1, 128, 4096), (1, 2048, 4096)]


def case(
    shape: tuple[int, ...], x_dtype: str, weight_dtype: str, *, epsilon: float = 1e-5, scale: float = 1.0, **more
) -> Case:
    """One case; the tolerance is the final rounding to x's dtype and a few float32 roundings before it."""
    return Case(
        name=f"{'x'.join(map(str, shape))}_{x_dtype}_{weight_dtype}_scale{scale:g}_epsilon{epsilon:g}",
        inputs={"x": Random(shape, x_dtype, scale), "weight": Random(shape[-1:], weight_dtype)},
        outputs={"y": x_dtype},
        attributes={"epsilon": epsilon},
        # x * factor * weight rounds twice, the factor's own error is a few more units of float32.
        relative=EPSILON[x_dtype] / 2 + 6 * EPSILON["float32"],
        absolute=1e-7 if x_dtype == "float16" else 0.0,  # half the spacing of subnormal float16
        **more,
    )


def cases() -> Iterator[Case]:
    """Every kernel on odd shapes, then small and large numbers, then the shapes of Llama-2-7B."""
    for x_dtype, weight_dtype in DTYPES:
        for shape in SHAPES:
            yield case(shape, x_dtype, weight_dtype)
        yield case((2, 64), x_dtype, weight_dtype, scale=1e-3)
        yield case((2, 64), x_dtype, weight_dtype, scale=1e3, epsilon=1e-6)
        for shape in BENCHMARKS:
            yield case(shape, x_dtype, weight_dtype, benchmark=True)
