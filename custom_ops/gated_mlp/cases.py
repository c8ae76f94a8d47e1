"""Cases of GatedMLP."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace

from onnxfuse.custom_ops.case import EPSILON, TF32_EPSILON, Case, Random
from onnxfuse.custom_ops.linear.cases import factor_error, normal_rows, packed_form, product_error, scales_of

DTYPES = ["float32", "float16", "bfloat16"]
ACTIVATIONS = ["silu", "gelu", "gelu_tanh"]
BIASES = [(), ("gate_bias", "up_bias", "down_bias"), ("up_bias",), ("gate_bias", "down_bias")]
WEIGHTS = ("gate_weight", "up_weight", "down_weight")
PACKED = [(), WEIGHTS, ("gate_weight",), ("up_weight", "down_weight")]

# Around every tile height of every target, then blocks of rows (256) and of hidden rows (512).
ROWS = [0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 13, 17, 24, 33, 128, 257, 513]
# H, I, O: odd and tiny; around a panel (32) and a slice of the depth (128); several slices.
PLAIN_WIDTHS = [(1, 1, 1), (7, 5, 3), (31, 33, 65), (129, 127, 34), (300, 257, 95)]
PACKED_WIDTHS = [(1, 32, 32), (7, 64, 96), (128, 32, 64), (129, 160, 32), (300, 320, 96)]
# Of int8: around a slice of the depth (256) and a step of AMX (32).
SCALED_WIDTHS = [(32, 32, 32), (96, 64, 96), (160, 288, 64), (288, 544, 32)]
# Whole vectors of 16 bytes, as CUDA's quicker kernels want them, around the numbers of rows where they change.
VECTOR_WIDTHS = (264, 352, 160)
VECTOR_ROWS = [1, 2, 4, 5, 8, 9, 64, 129, 260, 450]
# Many rows on CUDA, H in slices of 64, and I for which tiles of either width are best.
MANY_ROWS = [(450, (72, 8448, 40)), (1900, (264, 232, 8)), (256, (64, 120, 72))]
# Up to eight rows on CUDA: H in slices, and I for which tiles of either width are best.
FEW_ROWS = [(8, (1112, 520, 264)), (5, (520, 8584, 40))]
LLAMA_1B = (2048, 5632, 2048)
LLAMA_7B = (4096, 11008, 4096)


def case(
    rows: tuple[int, ...],
    widths: tuple[int, int, int],
    dtype: str,
    activation: str = "silu",
    packed: tuple[str, ...] = (),
    biases: tuple[str, ...] = (),
    *,
    skip: bool = False,
    norm: str | None = None,
    outputs: tuple[str, ...] = ("y", "sum"),
    weight_dtype: str | None = None,
    scale: float = 1.0,
    benchmark: bool = False,
    device: str | None = None,
) -> Case:
    """One case. Weights, of `dtype` or another, are scaled so that products are of the order of x, or of 1 if normed.

    `norm` is the dtype of the weight of the norm.
    """
    weight_dtype = weight_dtype or dtype
    h, i, o = widths
    shapes = {"gate_weight": (h, i), "up_weight": (h, i), "down_weight": (i, o)}
    lengths = {"gate_bias": (i,), "up_bias": (i,), "down_bias": (o,)}
    inputs: dict[str, Random | None] = {"x": Random((*rows, h), dtype, scale)}
    for name, shape in shapes.items():
        layout = packed_form(shape, weight_dtype) if name in packed else shape
        inputs[name] = Random(layout, weight_dtype, 1 / math.sqrt(shape[0]))
    for name, length in lengths.items():
        inputs[name] = Random(length, dtype) if name in biases else None
    inputs["skip"] = Random((*rows, h), dtype, scale) if skip else None
    inputs["norm_weight"] = Random((h,), norm) if norm else None
    if weight_dtype == "int8":
        inputs |= {name.replace("weight", "scale"): scales_of(shape) for name, shape in shapes.items()}
    # A sum of K products of the order of 1 / sqrt(K) wanders through K roundings of numbers of the order of 1, an error
    # of the order of sqrt(K) half units. 8 covers the largest of some 10^5 results and the activation; gate and up are
    # sums of products of two normal numbers, so for a small H the largest are far from 1 (3 times farther for H = 1).
    roundings = math.sqrt(h) + math.sqrt(i)
    tails = (1 + 2.2 / math.sqrt(normal_rows(h, weight_dtype))) ** 2
    # x, of this order, may meet another x of the same one; what is normalised is of the order of 1.
    order = 1.0 if norm else scale * (math.sqrt(2) if skip else 1)
    # One more rounding of the numbers, or of products of them, that are added up makes half a unit of the result on
    # average, errors being of either sign; 5 covers the largest of some 10^5.
    rounded = 0 if dtype == "float32" else 5 * tails * EPSILON[dtype] / 2 * max(order, order**2)
    # What is gated stays in float32. With biases gate and up are of the order of sqrt(2): if factors are rounded, they
    # are off by some 1.4 times as much as a sum of the order of 1, and once more when what is gated is rounded.
    beside = ("float32", weight_dtype, math.prod(rows))
    product = 8 * roundings * EPSILON["float32"] / 2 + product_error(*beside) + factor_error(*beside)
    return Case(
        name="_".join(
            [
                "x".join(map(str, (*rows, *widths))),
                *dict.fromkeys((dtype, weight_dtype)),
                activation,
                "packed" + "".join(name[0] for name in packed),
                "biases" + "".join(name[0] for name in biases),
                f"scale{scale:g}",
                *(["skip"] if skip else []),
                *([f"norm_{norm}"] if norm else []),
            ]
        ),
        inputs=inputs,
        outputs=dict.fromkeys(outputs if skip else ("y",), dtype),
        attributes={"activation": activation} | ({"epsilon": 1e-5} if norm else {}),
        relative=EPSILON[dtype] / 2 + 4 * EPSILON["float32"],
        absolute=product * tails * max(order, order**2) + rounded * bool(norm),
        cuda_absolute=rounded,  # of gate, up and their product
        # Two factors of every product are cut off by up to a unit, see Linear's cases.
        tf32_absolute=10 * tails * TF32_EPSILON * max(order, order**2) if dtype == "float32" else 0,
        benchmark=benchmark,
        device=device,
        flops=2.0 * math.prod(rows) * (2 * h * i + i * o),
    )


def cases() -> Iterator[Case]:
    """Every height of tile, every mix of layouts, biases and activations, large gates, then the shapes of Llama-1B."""
    for dtype, rounds in zip(DTYPES, (2, 1, 1), strict=True):
        mixes = zip(itertools.cycle(PACKED), itertools.cycle(PLAIN_WIDTHS), itertools.cycle(PACKED_WIDTHS))
        for rows, (packed, plain_widths, packed_widths) in zip(ROWS * rounds, mixes, strict=False):
            yield case((rows,), packed_widths if packed else plain_widths, dtype, packed=packed)
        for activation in ACTIVATIONS:
            yield case((5, 1, 3), (64, 96, 32), dtype, activation, WEIGHTS, BIASES[1], scale=30.0)
        for rows, packed, biases in zip(VECTOR_ROWS, itertools.cycle(PACKED), itertools.cycle(BIASES), strict=False):
            yield case((rows,), VECTOR_WIDTHS, dtype, packed=packed, biases=biases)
            yield case((rows,), VECTOR_WIDTHS, dtype, activation="gelu_tanh", biases=biases)
    for dtype, (rows, widths), activation in itertools.product(DTYPES[1:], MANY_ROWS, ACTIVATIONS):
        yield case((rows,), widths, dtype, activation, biases=BIASES[1] if rows > 256 else (), device="cuda")
    for dtype, (rows, widths) in itertools.product(DTYPES[1:], FEW_ROWS):
        yield case((rows,), widths, dtype, biases=BIASES[1], skip=True, norm=dtype, device="cuda")
    for rows, packed, biases in zip(ROWS, itertools.cycle(PACKED), itertools.cycle(BIASES), strict=False):
        widths = PACKED_WIDTHS[rows % 5] if packed else PLAIN_WIDTHS[rows % 5]
        yield case((rows,), widths, "float32", "silu", packed, biases, weight_dtype="bfloat16", device="cpu")
    for rows, biases, dtype in zip(ROWS, itertools.cycle(BIASES), itertools.cycle(DTYPES), strict=False):
        widths = SCALED_WIDTHS[rows % 4]
        yield case((rows,), widths, dtype, packed=WEIGHTS, biases=biases, weight_dtype="int8", device="cpu")
    for activation, packed, biases in itertools.product(ACTIVATIONS, PACKED[:2], BIASES):
        yield case((2, 3), (40, 64, 32), "float32", activation, packed, biases)
    for dtype in DTYPES:
        for norm, skip, rows in itertools.product((None, dtype, "float32"), (False, True), (1, 3, 9)):
            if norm is None and not skip:
                continue
            packed, biases = (WEIGHTS, BIASES[1]) if rows == 3 else ((), ())
            yield case((rows,), VECTOR_WIDTHS, dtype, packed=packed, biases=biases, skip=skip, norm=norm)
            yield case(
                (rows,), (33, 31, 65), dtype, skip=skip, norm=norm, outputs=("y",) if rows == 1 else ("y", "sum")
            )
        yield case((2, 241), (40, 64, 32), dtype, skip=True, norm=dtype, scale=100.0)
        yield case((0,), (40, 64, 32), dtype, skip=True, norm=dtype)
    for rows in (1, 4, 16, 128, 512):
        yield case((1, rows), LLAMA_1B, "float32", packed=WEIGHTS, benchmark=True, device="cpu")
    for rows in (1, 2, 4, 16, 128, 512):
        yield case(
            (1, rows), LLAMA_1B, "float32", packed=WEIGHTS, weight_dtype="bfloat16", benchmark=True, device="cpu"
        )
    for rows in (1, 2, 4, 16, 128, 512):
        yield case((1, rows), LLAMA_1B, "float32", packed=WEIGHTS, weight_dtype="int8", benchmark=True, device="cpu")
    for dtype, rows in itertools.product(("bfloat16", "float16"), (1, 16, 128)):
        yield case((1, rows), LLAMA_1B, dtype, packed=WEIGHTS, benchmark=True, device="cpu")
    for rows, packed in itertools.product((1, 4, 8, 16, 512, 2048), PACKED[:2]):
        yield case((1, rows), LLAMA_7B, "float16", packed=packed, benchmark=True, device="cuda")
    yield case((1, 1), LLAMA_7B, "float16", skip=True, norm="float16", benchmark=True, device="cuda")


def refused() -> Iterator[tuple[Case, str]]:
    """Inputs that the kernel refuses, and what it says."""
    good = case((2, 3), (8, 64, 32), "float32", biases=BIASES[1])

    def bad(name: str, shape: tuple[int, ...], dtype: str = "float32") -> Case:
        return replace(good, inputs={**good.inputs, name: Random(shape, dtype)}, name=f"{name} {shape} {dtype}")

    yield bad("x", ()), "x is a scalar"
    yield bad("gate_weight", (9, 64)), "gate_weight is [9,64], expected [8,N] or packed panels [N/32,8,32]"
    yield bad("up_weight", (2, 8, 16)), "up_weight is [2,8,16], expected [8,N] or packed panels [N/32,8,32]"
    yield bad("up_weight", (3, 8, 32)), "up_weight has 96 columns, gate_weight has 64: expected equal numbers"
    yield bad("down_weight", (32,)), "down_weight is [32], expected [64,N] or packed panels [N/32,64,32]"
    yield bad("down_weight", (64, 32), "float16"), "down_weight is float16, expected float32, bfloat16 or int8"
    yield (
        bad("gate_weight", (8, 64), "bfloat16"),
        "up_weight is float32, gate_weight is bfloat16: expected equal dtypes",
    )
    yield bad("gate_bias", (63,)), "gate_bias is [63], expected [64]"
    yield bad("up_bias", (1,)), "up_bias is [1], expected [64]"
    yield bad("down_bias", (1, 32)), "down_bias is [1,32], expected [32]"
    yield (
        replace(good, attributes={"activation": "relu"}, name="activation"),
        "activation is 'relu', expected silu, gelu or gelu_tanh",
    )
    yield replace(good, attributes={}, name="no activation"), "attribute activation is missing"
    normed = case((2, 3), (8, 64, 32), "float32", skip=True, norm="float32")
    yield (
        replace(normed, inputs={**normed.inputs, "skip": Random((3, 8))}, name="skip"),
        "skip is [3,8], expected the shape of x, [2,3,8]",
    )
    yield (
        replace(normed, inputs={**normed.inputs, "norm_weight": Random((7,))}, name="norm_weight"),
        "norm_weight is [7], expected [8]",
    )
    yield (
        replace(normed, inputs={**normed.inputs, "norm_weight": Random((8,), "float16")}, name="dtype of norm_weight"),
        "norm_weight is float16, expected float32",
    )
    yield replace(normed, attributes=good.attributes, name="no epsilon"), "attribute epsilon is missing"
