"""The Attention operator beyond single cases: decoding loops, what must not be read or written, threads, shapes."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

import onnxfuse
from onnxfuse.custom_ops.attention.cases import MASK, case, padding, shared
from onnxfuse.custom_ops.attention.reference import reference
from onnxfuse.custom_ops.case import EPSILON, Case, Random, feed, single_node_model, widen_edges
from onnxfuse.facts import Facts


def run(one: Case, threads: int = 0) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return session_of(one, options=options).run(None, feed(one))


def session_of(one: Case, **options) -> onnxruntime.InferenceSession:
    """The node in a model whose inputs and outputs numpy knows."""
    model = single_node_model("Attention", one, opset=18)
    widen_edges(model)
    return onnxfuse.session(model, **options)


def assert_right(one: Case, results: list[np.ndarray]) -> None:
    expected = reference(**one.arrays(), **one.attributes)[: len(one.outputs)]
    for got, want in zip(results, expected, strict=True):
        np.testing.assert_allclose(got.astype(np.float64), want, rtol=one.relative, atol=one.absolute, err_msg=one.name)


def random_case(rng: np.random.Generator) -> Case:
    """Any combination of sizes and options, most of them near a boundary of the kernel's blocks and tiles."""

    def choice(*options):
        return options[rng.integers(len(options))]

    batch, kv, group = int(rng.integers(1, 4)), choice(1, 2, 3), choice(1, 1, 2, 4, 7, 8)
    new = choice(1, 1, 2, 3, 5, 17, 40, 130)
    queries = choice(new, new, new, 1, 6)
    past = choice(None, 0, 1, 31, 127, 128, 129, 600, 1100)
    heads, keys = (kv * group, kv), new + (past or 0)
    dtype = choice("float32", "float32", "float16", "bfloat16")
    bias = None
    if rng.random() < 0.3:
        shape = (choice(1, batch), *choice((), (choice(1, heads[0]),)), choice(1, queries), keys)
        bias = Random(shape, choice("float32", dtype))
    return case(
        batch=batch,
        new=new,
        queries=queries,
        past=past,
        heads=heads,
        size=choice(1, 8, 16, 24, 33, 64, 80, 128),
        value_size=choice(1, 8, 16, 40, 64, 96, 130),
        dtype=dtype,
        ranks=(choice(3, 4), choice(3, 4), choice(3, 4)),
        mask=padding(choice(*MASK), batch, keys, choice("int64", "int32", "bool")) if rng.random() < 0.5 else None,
        bias=bias,
        present=bool(rng.random() < 0.7),
        causal=choice(0, 1),
        window=choice(0, 0, 3, 100),
        softcap=choice(0.0, 0.0, 4.0),
        past_rows=choice(0, 0, 1),
    )


@pytest.mark.parametrize("seed", range(8))
def test_random_combinations_agree_with_the_reference(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(12):
        one = random_case(rng)
        assert_right(one, run(one))


def test_the_result_does_not_depend_on_the_number_of_threads() -> None:
    """Tasks are cut by shape alone, so even the rounding errors are the same."""
    for one in (
        case(new=1, past=3000, heads=(4, 1)),
        case(new=300, heads=(4, 2), size=64),
        case(batch=3, new=2, past=9),
    ):
        for alone, together in zip(run(one, threads=1), run(one, threads=2), strict=True):
            np.testing.assert_array_equal(alone, together)


@pytest.mark.parametrize("dtype", EPSILON)
@pytest.mark.parametrize("mask", ["all", "left", "right", "holes"])
def test_a_shared_cache_equals_a_growing_one_while_decoding(dtype: str, mask: str) -> None:
    """A prompt of 5 tokens, then 1, 3 and 1 more; the shared buffer is bound as input and as output."""
    batch, heads, kv, size, room = 3, 4, 2, 16, 12
    wide = np.float32 if dtype == "bfloat16" else np.dtype(dtype)  # bfloat16 enters and leaves the models as float32
    suffix = "_float32" if dtype == "bfloat16" else ""
    rng = np.random.default_rng(1)
    buffers = [np.full((batch, kv, room, size), 7, wide) for _ in range(2)]  # 7: whatever was there before
    grown = [np.zeros((batch, kv, 0, size), wide) for _ in range(2)]
    length = 0
    for new in (5, 1, 3, 1):
        length += new
        shown = padding(mask, batch, length)
        shown[0, -1] = 1
        options = {"batch": batch, "new": new, "heads": (heads, kv), "size": size, "dtype": dtype}
        tokens = {name: rng.standard_normal((batch, new, n * size)) for name, n in (("q", heads), ("k", kv), ("v", kv))}
        inputs = {f"{name}{suffix}": x.astype(wide) for name, x in tokens.items()} | {"attention_mask": shown}
        growing = session_of(case(past=length - new, mask=shown, **options))
        pasts = dict(zip((f"past_key{suffix}", f"past_value{suffix}"), grown, strict=True))
        want, *grown = growing.run(None, inputs | pasts)
        static = session_of(case(past=room, mask=shown, shared_cache=1, **options))
        got = in_place(static, inputs, buffers, suffix)
        np.testing.assert_array_equal(got, want)
        for buffer, present in zip(buffers, grown, strict=True):
            np.testing.assert_array_equal(buffer[:, :, :length], present)
            assert (buffer[:, :, length:] == 7).all()


def in_place(session: onnxruntime.InferenceSession, inputs: dict, buffers: list[np.ndarray], suffix: str) -> np.ndarray:
    """Runs with past and present in the same memory, which is changed; y."""
    binding = session.io_binding()
    for name, array in inputs.items():
        binding.bind_cpu_input(name, array)
    for name, buffer in zip(("key", "value"), buffers, strict=True):
        value = onnxruntime.OrtValue.ortvalue_from_numpy(buffer)  # shares the memory of the array
        binding.bind_ortvalue_input(f"past_{name}{suffix}", value)
        binding.bind_ortvalue_output(f"present_{name}{suffix}", value)
    binding.bind_output(f"y{suffix}")
    session.run_with_iobinding(binding)
    return binding.get_outputs()[2].numpy()


def test_a_shared_cache_in_two_memories_is_copied_whole() -> None:
    one = shared(batch=2, length=20, room=300, new=3, heads=(4, 2), size=64)
    arrays = one.arrays()
    _, key, value = run(one)
    for present, past, new in ((key, arrays["past_key"], arrays["k"]), (value, arrays["past_value"], arrays["v"])):
        want = past.copy()
        want[:, :, 17:20] = new.reshape(2, 3, 2, 64).swapaxes(1, 2)
        np.testing.assert_array_equal(present, want)


def test_rows_of_a_shared_cache_beyond_the_length_are_not_read() -> None:
    one = shared(batch=2, length=20, room=300, new=3, heads=(4, 2))
    arrays = one.arrays()
    for name in ("past_key", "past_value"):
        arrays[name][:, :, 17:] = np.nan  # the new rows overwrite 17..19
    y, *_ = onnxfuse.session(single_node_model("Attention", one, opset=18)).run(None, arrays)
    np.testing.assert_array_equal(y, run(one)[0])


@pytest.mark.parametrize("queries", [1, 30])
def test_a_score_that_is_not_a_number_counts_only_where_its_key_is_visible(queries: int) -> None:
    one = case(batch=2, new=40, queries=queries, causal=0, mask=padding("right", 2, 40))
    arrays = one.arrays()
    clean = onnxfuse.session(single_node_model("Attention", one, opset=18))
    want, *_ = clean.run(None, arrays)
    arrays["k"][1, 38] = np.nan  # padding of batch 1
    got, *_ = clean.run(None, arrays)
    np.testing.assert_array_equal(got, want)
    arrays["k"][1, 3] = np.nan
    got, *_ = clean.run(None, arrays)
    np.testing.assert_array_equal(got[0], want[0])
    assert np.isnan(got[1]).all()


@pytest.mark.parametrize("shift", [-1e12, -100, 100, 1e12])
def test_a_constant_bias_changes_nothing_but_the_rounding(shift: float) -> None:
    def y(bias: float) -> np.ndarray:
        return run(case(new=30, heads=(4, 2), causal=0, bias=np.full((1, 1, 30, 30), bias, np.float32)))[0]

    if abs(shift) == 100:
        # Scores next to 100 are rounded by up to 100 * epsilon / 2, weights relatively as much; values stay below 5.
        np.testing.assert_allclose(y(shift), y(0), atol=5 * 100 * EPSILON["float32"])
    else:  # the scores are lost in the rounding: all keys weigh the same
        values = case(new=30, heads=(4, 2)).arrays()["v"].reshape(30, 2, 16)
        mean = np.broadcast_to(values.mean(axis=0).repeat(2, axis=0).reshape(-1), (1, 30, 64))
        np.testing.assert_allclose(y(shift), mean, atol=30 * EPSILON["float32"])


def test_shapes_are_inferred() -> None:
    """Symbols of the inputs reach the outputs; the mask tells the length that a symbolic past leaves open."""
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 18, "onnxfuse" : 1]>
        g (float[b,s,64] q, float[b,s,32] k, float[b,s,32] v, float[b,2,p,16] pk, float[b,2,p,16] pv, int64[b,t] m)
        => (float y_out, float key_out, float value_out) {
            y, key, value = onnxfuse.Attention <num_heads = 4, kv_num_heads = 2> (q, k, v, pk, pv, m)
            y_out = Identity (y) key_out = Identity (key) value_out = Identity (value)
        }"""
    )
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    session = onnxfuse.session(model)
    assert [output.shape for output in session.get_outputs()] == [["b", "s", 64], ["b", 2, "t", 16], ["b", 2, "t", 16]]


def test_shapes_of_rows_are_inferred() -> None:
    """past_rows: the heads of present stand before its features."""
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 18, "onnxfuse" : 1]>
        g (float[b,3,64] q, float[b,3,32] k, float[b,3,32] v, float[b,4,2,16] pk, float[b,4,2,16] pv)
        => (float y_out, float key_out, float value_out) {
            y, key, value = onnxfuse.Attention <num_heads = 4, kv_num_heads = 2, past_rows = 1> (q, k, v, pk, pv)
            y_out = Identity (y) key_out = Identity (key) value_out = Identity (value)
        }"""
    )
    facts = Facts(ir.from_proto(model))
    known = [facts.shape(value)[1:] for value in facts.model.graph.outputs]
    assert known == [(3, 64), (7, 2, 16), (7, 2, 16)]
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    session = onnxfuse.session(model)
    assert [output.shape for output in session.get_outputs()] == [["b", 3, 64], ["b", 7, 2, 16], ["b", 7, 2, 16]]


def test_equal_signatures_share_one_body() -> None:
    """Overloads differ where the body must, and only there: shapes and the value of the scale do not matter."""
    from onnxfuse.custom_ops.functions import body

    def overload(one: Case) -> str:
        (node,) = single_node_model("Attention", one, opset=18).graph
        assert isinstance(node, ir.Node)
        return body(node, 18).overload

    base = overload(case(new=3, scale=0.5))
    assert overload(case(batch=2, new=9, size=8, scale=0.25)) == base
    others = [
        case(new=3),
        case(new=3, scale=0.5, causal=0),
        case(new=3, scale=0.5, window=2),
        case(new=3, scale=0.5, heads=(4, 2)),
        case(new=3, scale=0.5, past=2),
        case(new=3, scale=0.5, past=2, past_rows=1),
        case(new=3, scale=0.5, bias=Random((1, 3, 3))),
        case(new=3, scale=0.5, bias=Random((1, 1, 3, 3))),
        case(new=3, scale=0.5, present=False),
        case(new=3, scale=0.5, ranks=(4, 3, 3)),
        case(new=3, scale=0.5, dtype="float16"),
        case(new=3, scale=0.5, mask=padding("all", 1, 3)),
    ]
    assert len({base, *map(overload, others)}) == len(others) + 1
