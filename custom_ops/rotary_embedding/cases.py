"""Cases of RotaryEmbedding."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

from onnxfuse.custom_ops.case import EPSILON, MIXED_DTYPES, Case, Random

# Batch, heads, length, head size and features to rotate (0: all).
SIZES = [
    (1, 1, 1, 2, 0),
    (2, 3, 4, 8, 0),
    (1, 2, 3, 6, 4),
    (2, 2, 5, 34, 32),
    (1, 3, 2, 62, 0),
    (2, 0, 3, 8, 0),
    (2, 3, 0, 8, 0),
]
BENCHMARKS = [(1, 32, 1, 128, 0), (1, 32, 2048, 128, 0)]


def cases() -> Iterator[Case]:
    """Every kernel in both layouts, with both pairings and both kinds of tables; then Llama-2-7B."""
    for dtypes in MIXED_DTYPES:
        for rank, interleaved, half_table in itertools.product((3, 4), (0, 1), (False, True)):
            # The shapes matter to the code of one dtype only; that of the others differs in loads and stores.
            for sizes in SIZES if dtypes == ("float32", "float32") else SIZES[3:4]:
                if rank == 4 or sizes[1] > 0:
                    yield case(*sizes, *dtypes, rank, interleaved, half_table)
        yield case(3, 2, 4, 16, 0, *dtypes, 3, 0, False, table_batch=3)
        yield case(3, 2, 4, 16, 0, *dtypes, 4, 1, True, table_batch=3)
        yield case(2, 4, 64, 64, 0, *dtypes, 3, 0, True)  # enough work for several threads
        for sizes in BENCHMARKS:
            for rank in (3, 4):
                yield case(*sizes, *dtypes, rank, 0, True, benchmark=True)
        yield case(*BENCHMARKS[-1], *dtypes, 4, 1, True, benchmark=True)
    whole = case(*SIZES[1], "float32", "float32", 3, 0, False)
    yield replace(whole, name="attributes left out", attributes={"num_heads": 3})


def refused() -> Iterator[tuple[Case, str]]:
    """Inputs that the kernel refuses, and what it says."""

    def changed(name: str, attributes: dict[str, int], **inputs: tuple[int, ...]) -> Case:
        good = case(2, 3, 4, 8, 0, "float32", "float32", 3 if "num_heads" in attributes else 4, 0, False)
        return replace(
            good,
            name=name,
            inputs={**good.inputs, **{key: Random(shape) for key, shape in inputs.items()}},
            attributes={**good.attributes, **attributes},
        )

    yield changed("rank", {}, x=(4, 8)), "x has rank 2, expected 3 or 4"
    yield changed("no heads", {"num_heads": 0}), "attribute num_heads is needed"
    yield changed("heads", {"num_heads": 5}), "expected a multiple of num_heads, 5"
    yield replace(changed("", {}), attributes={"num_heads": 2}, name="other heads"), "x has 3 heads, num_heads is 2"
    yield changed("negative heads", {"num_heads": -1}), "num_heads is -1, expected at least 0"
    yield changed("odd", {"rotary_dim": 3}), "rotary_dim is 3, expected an even number"
    yield changed("too many", {"rotary_dim": 10}), "10 features are to be rotated of a head size of 8"
    yield changed("interleaved", {"interleaved": 2}), "interleaved is 2, expected 0 or 1"
    yield changed("sin", {}, sin=(1, 4, 4)), "sin is [1,4,4], expected the shape of cos, [1,4,8]"
    for cos in [(1, 4, 6), (1, 5, 8), (3, 4, 8), (4, 8)]:
        yield changed(f"cos {cos}", {}, cos=cos, sin=cos), "expected [2 or 1,4,8 or 4]"


def case(
    batch: int,
    heads: int,
    length: int,
    head_size: int,
    rotary_dim: int,
    dtype: str,
    table_dtype: str,
    rank: int,
    interleaved: int,
    half_table: bool,
    *,
    table_batch: int = 1,
    benchmark: bool = False,
) -> Case:
    sizes = f"{batch}x{heads}x{length}x{head_size}-rotary_dim{rotary_dim}"
    kind = f"{'interleaved' if interleaved else 'half_split'}-{'half' if half_table else 'full'}_table{table_batch}"
    width = (rotary_dim or head_size) // (2 if half_table else 1)
    table = Random((table_batch, length, width), table_dtype)
    x_shape = (batch, length, heads * head_size) if rank == 3 else (batch, heads, length, head_size)
    return Case(
        name=f"{sizes}-rank{rank}-{kind}-{dtype}-{table_dtype}",
        inputs={"x": Random(x_shape, dtype), "cos": table, "sin": table},
        outputs={"y": dtype},
        attributes={"num_heads": heads if rank == 3 else 0, "interleaved": interleaved, "rotary_dim": rotary_dim},
        # The last rounding; two products and a difference that may cancel: errors are relative to the products, at
        # most about 5 * 5 here.
        relative=EPSILON[dtype] / 2 + EPSILON["float32"],
        absolute=25 * EPSILON["float32"],
        benchmark=benchmark,
    )
