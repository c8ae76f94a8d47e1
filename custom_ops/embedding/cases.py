"""Cases of Embedding."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from onnxfuse.custom_ops.case import DTYPES, Case, Random

BENCHMARKS = [(1, 1), (1, 512), (1, 2048), (8, 1)]


def cases() -> Iterator[Case]:
    """Ids of any rank, the first and the last row from both ends, rows with vectors and without, and Llama-2-7B's."""
    rng = np.random.default_rng(6)
    for dtype in DTYPES:
        for width in (1, 7, 8, 20, 1024, 1030, 2600):
            yield case(f"width {width}", rng.integers(-9, 9, (2, 5)), (9, width), dtype)
        yield case("one id", np.array(3), (5, 16), dtype)
        yield case("vector of ids", np.array([4, -5, 0, -1]), (5, 16), dtype)
        yield case("rank 4", rng.integers(0, 5, (2, 1, 3, 2)), (5, 24), dtype)
        yield case("one row", np.array([[0, -1]]), (1, 64), dtype)
        yield case("many", rng.integers(-300, 300, (3, 700)), (300, 136), dtype)
        yield case("no ids", np.zeros((2, 0)), (5, 16), dtype)
        yield case("no rows", np.zeros((0, 3)), (0, 16), dtype)
        yield case("no columns", np.array([[1, 2]]), (5, 0), dtype)
        for batch, length in BENCHMARKS:
            ids = rng.integers(0, 32000, (batch, length))
            yield case(f"{batch}x{length} of 32000x4096", ids, (32000, 4096), dtype, benchmark=True)


def refused() -> Iterator[tuple[Case, str]]:
    """Inputs that the kernel refuses, and what it says."""
    yield case("rank of table", np.array([1]), (5, 16, 2), "float32"), "table is [5,16,2], expected [rows, features]"
    yield case("id too large", np.array([[0, 5]]), (5, 16), "float32"), "id 5 is no row of the table [5,16]"
    yield case("id too small", np.array([[-6, 0]]), (5, 16), "float16"), "id -6 is no row of the table [5,16]"
    yield case("far", np.array([2**40 + 1]), (5, 16), "float32"), "id 1099511627777 is no row of the table [5,16]"
    yield case("table without rows", np.array([0]), (0, 16), "float32"), "id 0 is no row of the table [0,16]"
    yield (
        case("narrow", np.array([2**31 - 1]), (5, 16), "float32", index="int32"),
        "id 2147483647 is no row of the table [5,16]",
    )


def case(
    name: str,
    ids: np.ndarray,
    table: tuple[int, ...],
    dtype: str,
    *,
    index: str | None = None,
    benchmark: bool = False,
) -> Case:
    """Exact; ids of either dtype in turn, unless `index` says which."""
    index = index or ("int64" if len(name) % 2 else "int32")
    moved = 2 * ids.size * table[-1] * DTYPES[dtype].itemsize
    return Case(
        name=f"{name}-{dtype}-{index}",
        inputs={"ids": ids.astype(index), "table": Random(table, dtype)},
        outputs={"y": dtype},
        benchmark=benchmark,
        traffic=moved,
    )
