"""Cases of Attention."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from onnxfuse.custom_ops.case import DTYPES, EPSILON, TF32_EPSILON, Case, Random

MASK = ("all", "left", "right", "holes", "blind")


def padding(kind: str, batch: int, length: int, dtype: str = "int64") -> np.ndarray:
    """An attention mask [B, L]: padding of another length in each batch, or holes, or a batch that sees nothing."""
    index = np.arange(length)[None, :]
    pad = np.minimum(length, 1 + 2 * np.arange(batch))[:, None]
    mask = {
        "all": np.broadcast_to(index >= 0, (batch, length)),
        "left": index >= pad,
        "right": index < length - pad,
        "holes": (index * 7 + np.arange(batch)[:, None]) % 3 != 0,
        "blind": np.broadcast_to(np.arange(batch)[:, None] > 0, (batch, length)),
    }
    return np.ascontiguousarray(mask[kind]).astype(dtype)


@dataclass(frozen=True)
class Rotary:
    """Tables for `size` features of a head, with an entry for every pair or, if `whole`, for every feature."""

    size: int
    whole: bool = False
    batch: int = 1
    dtype: str | None = None  # that of q by default

    def tables(self, length: int, dtype: str) -> tuple[np.ndarray, np.ndarray]:
        """cos and sin: [batch, length, size or size / 2]; each batch starts at another position."""
        position = 1000 + 7 * np.arange(self.batch)[:, None, None] + np.arange(length)[:, None]
        angle = position * 100.0 ** (-np.arange(self.size // 2) / self.size)
        if self.whole:
            angle = np.concatenate([angle, angle + 0.1], axis=-1)  # an entry of its own for every feature
        kind = DTYPES[self.dtype or dtype]
        return np.cos(angle).astype(kind), np.sin(angle).astype(kind)


def case(
    *,
    batch: int = 1,
    new: int = 1,
    queries: int | None = None,
    past: int | None = None,
    heads: tuple[int, int] = (4, 4),
    size: int = 16,
    value_size: int | None = None,
    dtype: str = "float32",
    ranks: tuple[int, int, int] = (3, 3, 3),
    mask: np.ndarray | None = None,
    bias: Random | np.ndarray | None = None,
    present: bool = True,
    causal: int = 1,
    benchmark: bool = False,
    device: str | None = None,
    length: int | None = None,
    rotary: Rotary | None = None,
    **attributes: float,
) -> Case:
    """One case with `new` keys, as many queries unless given, and `past` keys before them.

    `length` says how many keys there are where `past` is a larger buffer.
    """
    n, kv = heads
    queries = new if queries is None else queries
    value_size = size if value_size is None else value_size

    def cached(features: int) -> Random | None:
        rows = (kv, past) if not attributes.get("past_rows") else (past, kv)
        return None if past is None else Random((batch, *rows, features), dtype)

    def sequence(rank: int, count: int, length: int, features: int) -> Random:
        shape = (batch, length, count * features) if rank == 3 else (batch, count, length, features)
        return Random(shape, dtype)

    inputs = {
        "q": sequence(ranks[0], n, queries, size),
        "k": sequence(ranks[1], kv, new, size),
        "v": sequence(ranks[2], kv, new, value_size),
        "past_key": cached(size),
        "past_value": cached(value_size),
        "attention_mask": mask,
        "bias": bias,
        "cos": None,
        "sin": None,
    }
    if rotary is not None:
        inputs["cos"], inputs["sin"] = rotary.tables(new, dtype)
    outputs = ["y", "present_key", "present_value"] if present else ["y"]
    details = [
        f"b{batch}_q{queries}_k{new}_p{past}_n{n}_{kv}_d{size}_{value_size}_{dtype}_rank{''.join(map(str, ranks))}",
        f"causal{causal}",
        *(f"{name}{value:g}" for name, value in attributes.items()),
        *([] if mask is None else [f"mask_{mask.dtype}_{int(mask.sum())}"]),
        *([] if bias is None else [f"bias{'x'.join(map(str, bias.shape))}_{bias.dtype}"]),
        *([] if present else ["y_only"]),
        *([] if rotary is None else [f"rotary{rotary.size}{'_whole' * rotary.whole}_b{rotary.batch}_{rotary.dtype}"]),
    ]
    keys = (past or 0) + new if length is None else length
    # Keys and values once, and once more where the past is copied; queries and results.
    moved = batch * (size + value_size) * (kv * (keys if length else 2 * keys) + n * queries) * DTYPES[dtype].itemsize
    return Case(
        name="_".join(details),
        inputs=inputs,
        outputs=dict.fromkeys(outputs, dtype),
        attributes={"num_heads": n, "kv_num_heads": kv, "causal": causal, **attributes},
        relative=EPSILON[dtype] / 2,
        # A score is a sum of D products, whose rounding errors add up like sqrt(D); an error of a score is a relative
        # error of its weight. Scores and values of these inputs stay below 8 or so.
        # Rotated queries and keys are rounded to T: half a unit each of all D products of a score, of either sign, make
        # up to 2 units of the score, and of its weight; values stay below 5.
        absolute=8 * EPSILON["float32"] * (size**0.5 + 2) + (0 if rotary is None else 10 * EPSILON[dtype]),
        # The weights are then rounded to T, by up to half a unit relatively; values of these inputs stay below 5.
        cuda_absolute=0 if dtype == "float32" else 5 * EPSILON[dtype] / 2,
        # All queries and keys as if they were rotated; weights, and values just so.
        tf32_absolute=(10 + 5) * TF32_EPSILON if dtype == "float32" else 0,
        benchmark=benchmark,
        device=device,
        traffic=moved,
        flops=2.0 * batch * n * queries * (size + value_size) * (keys - (queries - 1) / 2 if causal else keys),
    )


def shared(*, batch: int, length: int, room: int, new: int, mask: str = "all", **more) -> Case:
    """A buffer with `room` rows, of which `length` are in use afterwards."""
    shown = np.zeros((batch, room), np.int64)
    shown[:, :length] = padding(mask, batch, length)
    shown[-1, length - 1] = 1  # the mask tells the length
    return case(batch=batch, new=new, past=room, mask=shown, shared_cache=1, length=length, **more)


def cases() -> Iterator[Case]:
    """Sizes, dtypes and layouts, then each option, then what is empty, then the shapes of Llama models."""
    for dtype in EPSILON:
        yield case(batch=2, new=1, past=37, heads=(6, 2), size=16, dtype=dtype)
        yield case(batch=2, new=5, past=130, heads=(8, 1), size=20, value_size=12, dtype=dtype)
        yield case(batch=1, new=70, heads=(4, 2), size=64, dtype=dtype)
        yield case(batch=2, new=3, past=4, size=7, value_size=33, dtype=dtype, ranks=(4, 4, 4))
        yield shared(batch=2, length=40, room=64, new=2, size=32, heads=(4, 2), dtype=dtype)
        yield case(batch=2, new=3, past=140, heads=(4, 2), size=20, value_size=12, dtype=dtype, past_rows=1)
        for size in (64, 128):  # on AVX-512 eight rows want keys of 64 features transposed, those of 128 as they lie
            yield case(new=1, past=150, heads=(16, 2), size=size, dtype=dtype)
            yield case(new=2, past=150, heads=(8, 2), size=size, dtype=dtype, past_rows=1)
    for size in (1, 64, 80, 96, 128, 256):
        yield case(new=9, past=150, heads=(4, 2), size=size)
        yield case(new=1, past=300, heads=(4, 4), size=size)
    yield case(new=200, heads=(2, 2), size=7)  # the cache is copied apart from the rows, of which one task has too many
    for ranks in ((3, 4, 4), (4, 3, 3), (3, 3, 4), (4, 4, 4)):
        yield case(batch=2, new=7, heads=(6, 3), ranks=ranks)
        yield case(batch=2, new=2, past=9, heads=(6, 3), ranks=ranks, present=False)
        for present in (False, True):
            yield case(batch=2, new=2, past=9, heads=(6, 3), ranks=ranks, present=present, past_rows=1)

    for causal in (0, 1):
        for mask in MASK:
            yield case(batch=3, new=6, past=11, heads=(4, 2), causal=causal, mask=padding(mask, 3, 17))
        yield case(batch=2, new=150, heads=(4, 2), causal=causal, mask=padding("left", 2, 150, "int32"))
        yield case(batch=2, new=4, past=3, causal=causal, mask=padding("holes", 2, 7, "bool"))
        yield case(new=30, queries=7, past=3, causal=causal)
        yield case(new=3, queries=9, causal=causal)
        yield case(new=9, past=140, heads=(4, 2), causal=causal, window=5)
        yield case(new=160, heads=(2, 1), causal=causal, window=40, present=False)
        yield case(new=9, past=140, heads=(4, 2), causal=causal, softcap=2.5)
        for shape in ((2, 4, 6, 16), (1, 4, 6, 16), (2, 1, 6, 16), (1, 1, 1, 16), (2, 1, 1, 16)):
            if shape[1] == 1:
                without = Random((shape[0], *shape[2:]), scale=2.0)
                yield case(batch=2, new=6, past=10, heads=(4, 2), causal=causal, bias=without)
            yield case(batch=2, new=6, past=10, heads=(4, 2), causal=causal, bias=Random(shape, scale=2.0))
    yield case(new=5, past=6, scale=0.3)
    yield case(new=40, heads=(4, 2), bias=Random((1, 1, 40, 40), "float16"), dtype="float16")
    yield case(new=40, heads=(4, 2), bias=Random((1, 1, 40, 40)), dtype="float16")
    yield case(batch=2, new=6, softcap=3.0, window=4, bias=Random((1, 4, 6, 6)), mask=padding("holes", 2, 6))
    lowest = np.where(np.arange(6)[:, None] < 2, np.finfo(np.float32).min, np.tri(6) - 1).astype(np.float32)
    yield case(new=6, causal=0, bias=lowest[None, None])
    yield case(new=6, causal=0, bias=np.where(np.tri(6, k=-2) > 0, 0, -np.inf).astype(np.float32)[None, None])
    for mask in ("left", "right", "holes"):
        yield shared(batch=3, length=50, room=60, new=1, mask=mask, heads=(4, 2))
        yield shared(batch=3, length=9, room=9, new=4, mask=mask, heads=(4, 2))
    yield shared(batch=1, length=30, room=200, new=30)

    yield case(new=250, heads=(2, 2), size=8)  # several blocks of rows: present is written by tasks of its own
    yield case(new=250, past=3, heads=(2, 2), size=8, past_rows=1)
    for dtype in EPSILON:  # several blocks of rows, the last one shorter, and several parts of the keys
        yield case(new=28, past=600, heads=(32, 4), size=16, dtype=dtype)
        yield case(new=30, past=700, heads=(14, 2), size=20, value_size=12, dtype=dtype)
    yield case(new=1, past=2500, heads=(4, 1), size=64, past_rows=1)  # parts of the keys, and a copy past the caches
    yield case(new=7, heads=(4, 2), past_rows=1)

    # Many rows, round the tiles of CUDA's tensor-core kernels: 32 to 128 rows, 16 to 128 keys.
    for dtype in EPSILON:
        many = {"heads": (4, 2), "dtype": dtype}
        for size in (64, 80, 96, 128, 256):
            yield case(batch=2, new=130, past=70, size=size, **many)
            yield case(batch=2, new=65, past=191, size=size, mask=padding("holes", 2, 256), causal=0, **many)
            yield case(new=140, size=size, window=33, softcap=3.0, bias=Random((1, 4, 140, 140)), **many)
        yield case(new=90, queries=200, size=128, value_size=64, **many)
        yield case(new=200, queries=90, size=32, value_size=128, ranks=(4, 4, 3), **many)
        yield case(batch=2, new=150, size=128, mask=padding("blind", 2, 150), **many)
        yield case(batch=2, new=140, past=130, size=128, past_rows=1, present=False, **many)
        yield case(new=300, size=64, window=100, ranks=(3, 4, 4), **many)
        yield case(new=70, past=10, size=128, scale=-0.1, **many)
        yield shared(batch=2, length=390, room=400, new=200, mask="left", size=128, **many)
    # Some rows of float32 behind many keys, which CUDA cuts into parts.
    yield case(new=20, past=700, heads=(4, 2), size=64)
    yield shared(batch=2, length=640, room=700, new=19, mask="left", heads=(4, 2), size=128)
    yield case(new=3, past=600, heads=(4, 2), size=256)
    for new in (63, 64, 127, 128, 129, 255, 256, 257):
        yield case(new=new, heads=(2, 2), size=128, dtype="float16")
        yield case(new=new, past=128, heads=(7, 1), size=64, dtype="float16")
        yield case(batch=2, new=new, past=5, heads=(6, 2), size=200, dtype="float16")

    # Up to eight rows of 16-bit numbers on CUDA: tiles of 16 keys, dealt to warps and blocks.
    for dtype in ("float16", "bfloat16"):
        few = {"heads": (8, 2), "dtype": dtype}
        for size in (64, 80, 96, 128, 256):
            yield case(batch=2, new=1, past=300, size=size, mask=padding("holes", 2, 301), **few)
            yield shared(batch=3, length=290, room=320, new=2, mask="right", size=size, rotary=Rotary(size), **few)
        yield case(batch=2, new=3, past=140, size=128, value_size=64, window=33, softcap=3.0, **few)
        yield case(new=1, past=700, size=64, bias=Random((1, 8, 1, 701), scale=2.0), **few)
        yield case(new=1, past=700, size=128, window=90, past_rows=1, **few)
        yield case(new=300, queries=1, size=128, causal=0, **few)
        # more tiles of new keys than warps that share them
        yield case(new=600, queries=1, size=128, causal=0, **few)
        yield case(batch=15, new=90, queries=1, size=64, heads=(14, 14), causal=0, dtype=dtype)
        yield shared(batch=1, length=900, room=1000, new=1, size=128, window=100, rotary=Rotary(128), **few)
        yield shared(batch=2, length=70, room=90, new=1, mask="blind", size=64, **few)
        yield shared(batch=9, length=2000, room=2048, new=1, mask="left", size=64, heads=(4, 1), dtype=dtype)
        for batch, kv, size in ((8, 8, 64), (5, 20, 128)):  # numbers of blocks of a head that are no power of two
            more = {"heads": (2 * kv, kv), "size": size, "dtype": dtype, "rotary": Rotary(size)}
            yield shared(batch=batch, length=590, room=640, new=1, mask="left", **more)
        yield shared(batch=1, length=40, room=64, new=16, size=32, heads=(2, 2), dtype=dtype, rotary=Rotary(32))
    for past in (0, 15, 16, 17, 63, 64, 511, 512, 513, 1024):
        yield case(new=1, past=past, heads=(2, 2), size=128, dtype="float16")
        yield shared(batch=1, length=past + 1, room=1100, new=1, heads=(16, 2), size=64, dtype="float16")

    for dtype, table, interleaved in product(EPSILON, (None, "float32"), (0, 1)):
        options = {"dtype": dtype, "heads": (4, 2), "interleaved": interleaved}
        for whole in (False, True):
            rotary = Rotary(32, whole, dtype=table)
            yield case(batch=2, new=1, past=37, size=32, rotary=rotary, **options)
            yield case(batch=2, new=70, past=3, size=64, rotary=Rotary(64, whole, 2, table), **options)
            yield shared(batch=2, length=40, room=64, new=2, size=32, rotary=Rotary(32, whole, 2, table), **options)
        yield case(new=3, past=140, size=20, value_size=12, rotary_dim=6, rotary=Rotary(6, dtype=table), **options)
        yield case(new=2, past=9, size=48, rotary_dim=32, rotary=Rotary(32, dtype=table), past_rows=1, **options)
    for ranks in ((3, 4, 4), (4, 3, 3), (4, 4, 4)):
        yield case(batch=2, new=7, past=5, heads=(6, 3), ranks=ranks, rotary=Rotary(16, batch=2))
        yield case(batch=2, new=2, heads=(6, 3), ranks=ranks, present=False, rotary=Rotary(16))
    yield case(new=0, past=5, rotary=Rotary(16))

    yield case(batch=0, new=3, past=2)
    yield case(new=0, past=5)
    yield case(batch=2, new=3, past=0, heads=(4, 2))
    yield case(batch=2, new=3, past=0, heads=(4, 2), past_rows=1)
    yield case(new=0)
    yield case(new=2, queries=0, past=3)

    for heads, size in (((32, 32), 128), ((32, 4), 64)):
        for new, past in ((1, 1024), (1, 4000), (128, 0), (512, 0)):
            yield case(new=new, past=past, heads=heads, size=size, benchmark=True, device="cpu")
    for heads, size, dtype in (((32, 32), 128, "float16"), ((32, 4), 64, "bfloat16"), ((32, 8), 128, "bfloat16")):
        gpu = {"heads": heads, "size": size, "dtype": dtype, "benchmark": True, "device": "cuda"}
        for batch, past in ((1, 1024), (1, 4000), (8, 1024)):
            yield shared(batch=batch, length=past + 1, room=4096, new=1, **gpu)
            yield case(batch=batch, new=1, past=past, **gpu)
            yield shared(batch=batch, length=past + 1, room=4096, new=1, rotary=Rotary(size), **gpu)
        for prompt in (512, 2048):
            yield case(new=prompt, **gpu)


def refused() -> Iterator[tuple[Case, str]]:
    """Inputs that the kernel refuses, and what it says."""
    good = case(batch=2, new=3, past=4)
    buffer = shared(batch=2, length=6, room=8, new=2)

    def bad(like: Case = good, *, attributes: dict[str, float] | None = None, **inputs) -> Case:
        changed = ", ".join([*inputs, *(attributes or {})])
        inputs, attributes = {**like.inputs, **inputs}, {**like.attributes, **(attributes or {})}
        return replace(like, inputs=inputs, attributes=attributes, name=f"bad {changed}")

    yield bad(attributes={"kv_num_heads": 3}), "num_heads is 4 and kv_num_heads is 3, expected"
    without = {name: value for name, value in good.attributes.items() if name != "kv_num_heads"}
    yield replace(good, attributes=without, name="no heads"), "attribute kv_num_heads is missing"
    yield bad(q=Random((2, 3, 63))), "q is [2,3,63], expected [B, S, 4 * size] or [B, 4, S, size]"
    yield bad(q=Random((6, 64))), "q is [6,64], expected [B, S, 4 * size]"
    yield bad(q=Random((2, 5, 3, 16))), "q is [2,5,3,16], expected [B, S, 4 * size] or [B, 4, S, size]"
    yield bad(k=Random((1, 3, 64))), "k does not have the batch 2"
    yield bad(k=Random((2, 3, 32))), "k does not have the batch 2 and head size 16 of q"
    yield bad(v=Random((2, 2, 64))), "v does not have the batch 2 and length 3 of k"
    yield bad(past_value=None), "past_key and past_value must both be given, or neither"
    yield bad(past_key=Random((2, 4, 4, 8))), "past_key is [2,4,4,8], expected [2, 4, P, 16]"
    yield bad(past_key=Random((2, 4, 64))), "past_key is [2,4,64], expected [2, 4, P, 16]"
    yield bad(attributes={"past_rows": 1}, past_key=Random((2, 4, 5, 16))), "expected [2, P, 4, 16]"
    yield bad(buffer, attributes={"past_rows": 1}), "shared_cache and past_rows are both set, expected one of them"
    yield bad(past_value=Random((2, 4, 5, 16))), "past_value is [2,4,5,16], expected [2,4,4,16]"
    yield (
        bad(attention_mask=np.ones((2, 6), np.int64)),
        "attention_mask is [2,6], expected [2, 7]: 4 past keys",
    )
    yield bad(attention_mask=np.ones((1, 7), np.int64)), "attention_mask is [1,7], expected [2, L]"
    yield bad(attention_mask=np.ones((2, 7), np.float32)), "attention_mask is float32, expected int64, int32 or bool"
    yield (
        bad(bias=Random((2, 4, 3, 8))),
        "bias is [2,4,3,8], expected [2,4,3,7] or 1 in place of any",
    )
    yield bad(bias=Random((4, 3, 7))), "bias is [4,3,7], expected [2,4,3,7]"
    yield bad(bias=Random((3, 7))), "bias is [3,7], expected [2,4,3,7]"
    yield bad(bias=Random((2, 4, 3, 7), "float16")), "an input is float16, expected float32"
    rotated = case(batch=2, new=3, past=4, rotary=Rotary(16))
    yield bad(rotated, sin=None), "cos and sin must both be given, or neither"
    yield bad(rotated, cos=Random((1, 4, 8)), sin=Random((1, 4, 8))), "cos is [1,4,8], expected [2 or 1,3,16 or 8]"
    yield bad(rotated, sin=Random((1, 3, 16))), "sin is [1,3,16], expected the shape of cos, [1,3,8]"
    yield bad(rotated, sin=Random((1, 3, 8), "float16")), "sin is float16, expected the dtype of cos, float32"
    yield bad(rotated, cos=Random((1, 3, 8), "float16")), "cos is float16, expected float32 or float32"
    yield bad(rotated, k=Random((2, 5, 64)), v=Random((2, 5, 64))), "cos is [1,3,8], expected [2 or 1,5,16 or 8]"
    yield bad(rotated, attributes={"rotary_dim": 18}), "18 features are to be rotated of a head size of 16"
    yield bad(buffer, attention_mask=None), "shared_cache needs attention_mask"
    yield bad(buffer, past_key=None, past_value=None), "shared_cache needs past_key and past_value"
    yield bad(buffer, attention_mask=np.ones((2, 9), np.int64)), "shows keys up to 9, expected at least the 2 new ones"
    yield bad(buffer, attention_mask=np.zeros((2, 5), np.int64)), "shows keys up to 0, expected at least"
