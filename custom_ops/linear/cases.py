"""Cases of Linear."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from onnxfuse.custom_ops.case import EPSILON, INT8_RMS, TF32_EPSILON, Case, Random
from onnxfuse.custom_ops.int8 import SCALED_ROWS, numbers_shape, scales_shape
from onnxfuse.custom_ops.packing import packed_shape

# T and the dtype of the weights.
DTYPES = [("float32", "float32"), ("float16", "float16"), ("bfloat16", "bfloat16"), ("float32", "bfloat16")]
INT8_DTYPES = [("float32", "int8"), ("float16", "int8"), ("bfloat16", "int8")]

# What sums of products of numbers of the order of 1 are off by, beside roundings to float32 (see common/gemm.h). Errors
# are independent, and of either sign, so that a sum of products of the order of 1 has about as much as one of them.
PRODUCT_ERRORS = {
    "float32": 0.0,
    # On AMX a product is within 2^-15, typically a quarter of that.
    "float16": 2.0**-15,
    "bfloat16": 2.0**-15,
    # As an integer an activation is within 2^-16 of the largest of 32, evenly spread: 4 times the others, or more among
    # gated ones, 1 / sqrt(3) of it in the mean square; 5 covers the largest of some 10^5.
    "int8": 5 * 4 / math.sqrt(3) * 2.0**-16,
}
# Beyond so many rows a factor is rounded to bfloat16: a weight of int8 on AMX, an activation beside weights of bfloat16
# on VDPBF16PS. That changes it by up to 2^-8 of the power of two below it, evenly spread, of which it is sqrt(7/3)
# times as much in the mean square; 5 covers the largest of some 10^5.
ROUNDED_TO_BFLOAT16 = 5 * 2.0**-8 / math.sqrt(7)
FEW_INT8_ROWS = 32
FEW_BFLOAT16_ROWS = 7

# Around every tile height of every target, then blocks of rows and what is normalised at a time.
ROWS = [0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 13, 17, 24, 33, 128, 257, 513]
# K and the N of every weight: odd and tiny; around a panel (32) and a slice of the depth (128 on AMX, 256); several.
PLAIN = [(1, (1,)), (7, (5, 3, 9)), (31, (33, 65)), (129, (127,)), (300, (257, 95, 31)), (513, (40,))]
PACKED = [(1, (32,)), (7, (64, 96, 32)), (129, (160,)), (300, (320, 64, 64)), (128, (32, 96))]
# Whole vectors of 16 bytes, as CUDA's quicker kernels want them, around the numbers of rows where they change.
VECTORS = (264, (352, 88, 88))
VECTOR_ROWS = [1, 2, 4, 5, 8, 9, 64, 129, 260, 450]
# Many rows on CUDA, K in slices of 64, and numbers of columns for which tiles of each width are best.
MANY_ROWS = [
    (450, (72, (4096, 4104))),
    (450, (136, (4200, 4200, 88))),
    (1900, (264, (96, 40, 8))),
    (256, (64, (520, 8))),
]
# Up to eight rows on CUDA: slices whose last step of 16 rows is half one, numbers of columns for tiles of either width.
FEW_ROWS = [(3, (1112, (520, 72, 8))), (8, (520, (12000, 288)))]
# On the CPU sums of whole panels without a bias are written where they belong: tiles of every height, the last of which
# is not full, blocks of one and of several panels, one slice of the depth and three of them.
SUMS = [
    (5, (96, (64,))),
    (40, (600, (96, 32))),
    (50, (264, (1088,))),
    (128, (600, (64, 1120))),
    (300, (96, (1088, 32))),
]
# Of int8: around a slice of the depth (256) and a step of AMX (32).
SCALED = [(32, (32,)), (96, (64, 96, 32)), (160, (160,)), (288, (320, 64)), (544, (32, 96))]
# skip, norm_weight
FRONTS = [(False, False), (False, True), (True, True), (True, False)]
QKV_7B = (4096, (4096, 4096, 4096))
QKV_1B = (2048, (2048, 512, 512))
OUTPUT_7B = (4096, (4096,))
LOGITS_7B = (4096, (32000,))


def case(
    rows: tuple[int, ...],
    widths: tuple[int, Sequence[int]],
    dtypes: tuple[str, str],
    *,
    skip: bool = False,
    norm: bool = False,
    norm_dtype: str | None = None,
    packed: bool | Sequence[bool] = False,
    biases: Sequence[int] = (),
    reads_sum: bool = True,
    benchmark: bool = False,
    device: str | None = None,
) -> Case:
    """One case. Weights are scaled so that every product is of the order of h; `biases` are the products that have one.

    `packed` tells the layout of all weights or of each, `reads_sum` whether the node has the output sum.
    """
    dtype, weight_dtype = dtypes
    depth, columns = widths
    layouts = [packed] * len(columns) if isinstance(packed, bool) else packed
    inputs: dict[str, Random | None] = {
        "x": Random((*rows, depth), dtype),
        "skip": Random((*rows, depth), dtype) if skip else None,
        "norm_weight": Random((depth,), norm_dtype or dtype) if norm else None,
    }
    for i in range(3):
        shape = (depth, columns[i]) if i < len(columns) else None
        layout = packed_form(shape, weight_dtype) if shape and layouts[i] else shape
        inputs[f"weight_{i}"] = Random(layout, weight_dtype, 1 / math.sqrt(max(depth, 1))) if layout else None
        inputs[f"bias_{i}"] = Random((columns[i],), dtype) if shape and i in biases else None
    for i, n in enumerate(columns if weight_dtype == "int8" else ()):
        inputs[f"scale_{i}"] = scales_of((depth, n))
    outputs = {f"y_{i}": dtype if i < len(columns) else None for i in range(3)}
    outputs["sum"] = dtype if skip and reads_sum else None
    while list(outputs.values())[-1] is None:
        outputs.popitem()
    # A sum of K products of the order of 1 / sqrt(K) wanders through K roundings of numbers of the order of 1, an error
    # of the order of sqrt(K) half units; 8 covers the largest of some 10^5 results. For a small K results are far from
    # 1: the largest of a product of three normal numbers is some 30. Of int8 one number in 32, the scale, is normal.
    tails = (1 + 2.2 / math.sqrt(max(normal_rows(depth, weight_dtype), 1))) ** 2
    # x + skip is twice as large in the mean square, the norm makes that 1 again, and its own error is a few units.
    size = math.sqrt(2) if skip and not norm else 1
    absolute = 8 * math.sqrt(depth) * EPSILON["float32"] / 2
    absolute += product_error(dtype, weight_dtype, math.prod(rows))
    if norm:
        # h is rounded to T: errors of up to half a unit and of either sign in a sum of K terms make half a unit of the
        # result on average; 5 covers the largest of some 10^5.
        absolute += 5 * EPSILON[dtype] / 2
    return Case(
        name="_".join(
            [
                "x".join(map(str, (*rows, depth))),
                "+".join(f"{n}{'packed' * layout}" for n, layout in zip(columns, layouts, strict=True)),
                *dict.fromkeys(dtypes),
                "skip" * skip + "norm" * norm + (norm_dtype or ""),
                "biases" + "".join(map(str, biases)),
            ]
        ),
        inputs=inputs,
        outputs=outputs,
        attributes={"epsilon": 1e-5} if norm else {},
        relative=EPSILON[dtype] / 2 + 4 * EPSILON["float32"],
        absolute=absolute * tails * size,
        # Both factors of every product may be cut off, by up to a unit and towards zero, and so is a sum then; results
        # are up to 5 or so.
        tf32_absolute=10 * TF32_EPSILON * tails * size if dtypes == ("float32", "float32") else 0,
        benchmark=benchmark,
        device=device,
        flops=2.0 * math.prod(rows) * depth * sum(columns) if math.prod(rows) > 32 else 0.0,
    )


def product_error(dtype: str, weight_dtype: str, rows: int) -> float:
    """What sums of products of activations, in `dtype`, of the order of 1 are off by, beside roundings to float32."""
    return PRODUCT_ERRORS[weight_dtype] + factor_error(dtype, weight_dtype, rows)


def factor_error(dtype: str, weight_dtype: str, rows: int) -> float:
    """The part of that which is due to a factor rounded to bfloat16."""
    weight = weight_dtype == "int8" and rows > FEW_INT8_ROWS
    activation = weight_dtype == "bfloat16" != dtype and rows > FEW_BFLOAT16_ROWS
    return ROUNDED_TO_BFLOAT16 if weight or activation else 0.0


def packed_form(shape: tuple[int, int], dtype: str) -> tuple[int, ...]:
    """The shape in which a weight [K, N] of this dtype is packed."""
    return numbers_shape(shape) if dtype == "int8" else packed_shape(shape)


def normal_rows(depth: int, dtype: str) -> float:
    """How many rows of a weight are normally distributed by themselves: of int8 only the scales are."""
    return depth / SCALED_ROWS if dtype == "int8" else depth


def scales_of(shape: tuple[int, int]) -> Random:
    """Scales that make the products by a weight [K, N] of int8 of the order of h."""
    return Random(scales_shape(shape), "bfloat16", 1 / (INT8_RMS * math.sqrt(shape[0])))


def cases() -> Iterator[Case]:
    """Every height of tile, mixes of weights, layouts, biases and what is in front, then the shapes of Llama."""
    for dtypes, rounds in zip(DTYPES, (2, 1, 1, 2), strict=True):
        mixes = zip(itertools.cycle(PLAIN), itertools.cycle(PACKED), itertools.cycle(FRONTS), strict=False)
        for i, (rows, (plain, packed, (skip, norm))) in enumerate(zip(ROWS * rounds, mixes, strict=False)):
            widths = packed if i % 2 else plain
            biases = [(), (0, 2), (1,)][i % 3]
            yield case((rows,), widths, dtypes, skip=skip, norm=norm, packed=i % 2 == 1, biases=biases)
        for rows, (skip, norm) in zip(VECTOR_ROWS, itertools.cycle(FRONTS), strict=False):
            yield case((rows,), VECTORS, dtypes, skip=skip, norm=norm, norm_dtype="float32" if rows % 2 else None)
            yield case((rows,), (264, (352,)), dtypes, skip=skip, norm=norm, packed=True, biases=(0,))
        yield case((2, 3), (64, (32, 40, 64)), dtypes, packed=(True, False, True), biases=(0, 1, 2), norm=True)
        if dtypes[0] != "float32":
            for (rows, widths), biases in zip(MANY_ROWS, itertools.cycle([(0,), (1,)]), strict=False):
                yield case((rows,), widths, dtypes, biases=biases, norm=rows == 450, device="cuda")
            for (rows, widths), (skip, norm) in itertools.product(FEW_ROWS, FRONTS):
                yield case((rows,), widths, dtypes, biases=(0,), skip=skip, norm=norm, device="cuda")
            yield case((7,), (1112, (64, 288)), dtypes, packed=True, skip=True, norm=True, device="cuda")
        yield case((2, 0, 3), (64, (32, 32)), dtypes, skip=True, norm=True)
        yield case((3,), (0, (32,)), dtypes, biases=(0,))
        yield case((3,), (16, (0, 8)), dtypes)
        for front in ((True, True), (True, False)):
            yield case((7,), (40, (24,)), dtypes, skip=front[0], norm=front[1], reads_sum=False)
    for dtypes, (rows, widths), packed in itertools.product((DTYPES[0], DTYPES[3]), SUMS, (False, True)):
        yield case((rows,), widths, dtypes, packed=packed, device="cpu")
    mixes = zip(itertools.cycle(SCALED), itertools.cycle(FRONTS), itertools.cycle(INT8_DTYPES), strict=False)
    for i, (rows, (widths, (skip, norm), dtypes)) in enumerate(zip(ROWS * 3, mixes, strict=False)):
        biases = [(), (0, 2), (1,)][i % 3]
        yield case((rows,), widths, dtypes, skip=skip, norm=norm, packed=True, biases=biases, device="cpu")
    yield case((), (40, (24, 8)), ("float32", "float32"), skip=True, norm=True)
    for (weights, front), dtypes, rows in itertools.product(
        [(QKV_7B, True), (OUTPUT_7B, False)], (DTYPES[0], DTYPES[3], INT8_DTYPES[0], DTYPES[1]), (1, 4, 16, 128, 512)
    ):
        yield case((1, rows), weights, dtypes, norm=front, packed=True, benchmark=True, device="cpu")
    for widths, dtypes, rows in itertools.product((QKV_7B, QKV_1B, OUTPUT_7B, LOGITS_7B), DTYPES[1:3], (1, 4, 16, 128)):
        yield case((1, rows), widths, dtypes, skip=True, norm=True, benchmark=True, device="cuda")


def refused() -> Iterator[tuple[Case, str]]:
    """Inputs that the kernel refuses, and what it says."""
    good = case((2, 3), (8, (64, 32)), ("float32", "float32"), skip=True, norm=True, biases=(0, 1))

    def bad(name: str, shape: tuple[int, ...], dtype: str = "float32") -> Case:
        return replace(good, inputs={**good.inputs, name: Random(shape, dtype)}, name=f"{name} {shape} {dtype}")

    yield bad("x", ()), "x is a scalar"
    yield bad("skip", (3, 8)), "skip is [3,8], expected the shape of x, [2,3,8]"
    yield bad("norm_weight", (9,)), "norm_weight is [9], expected [8], the last dimension of x"
    yield bad("norm_weight", (8,), "float16"), "norm_weight is float16, expected float32"
    yield bad("weight_0", (9, 64)), "weight_0 is [9,64], expected [8,N] or packed panels [N/32,8,32]"
    yield bad("weight_1", (2, 8, 16)), "weight_1 is [2,8,16], expected [8,N] or packed panels [N/32,8,32]"
    yield bad("weight_1", (8, 32), "float16"), "weight_1 is float16, expected float32, bfloat16 or int8"
    yield bad("bias_0", (63,)), "bias_0 is [63], expected [64]"
    yield bad("bias_1", (1, 32)), "bias_1 is [1,32], expected [32]"
    half = case((2, 3), (8, (64,)), ("float16", "float32"))
    yield replace(half, name="float32 weight"), "weight_0 is float32, expected float16 or int8"
    scaled = case((2, 3), (64, (64, 32)), INT8_DTYPES[0], packed=True)

    def bad_scaled(name: str, given: Random | None) -> Case:
        return replace(scaled, inputs={**scaled.inputs, name: given}, name=f"{name} {given}")

    yield bad_scaled("scale_0", None), "weight_0 is int8 without scales, expected int8 with scales or another dtype"
    yield bad_scaled("weight_0", Random((64, 64))), "weight_0 is float32 and has scales"
    yield bad_scaled("scale_1", Random((1, 3, 32), "bfloat16")), "the scale of weight_1 is [1,3,32], expected [1,2,32]"
    yield bad_scaled("scale_0", Random((2, 2, 32))), "an input is float32, expected bfloat16"
    yield bad_scaled("weight_0", Random((64, 64), "int8")), "weight_0 is int8 and [64,64], expected [N/32,K/4,32,4]"
    odd = case((2, 3), (48, (64,)), INT8_DTYPES[0], packed=True)
    yield replace(odd, name="odd depth"), "weight_0 is int8 and [2,12,32,4], expected [N/32,K/4,32,4], K = 48"
    yield replace(good, attributes={}, name="no epsilon"), "attribute epsilon is missing, expected with norm_weight"
    yield replace(good, attributes={"epsilon": 1}, name="epsilon type"), "attribute epsilon is not a float"
