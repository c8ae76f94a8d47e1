"""level="block": fused operators are joined to larger ones, half a layer to one node."""

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graphs import check_sound, model_of, operators

import onnxfuse
from onnxfuse import soundness
from onnxfuse.custom_ops.functions import attach
from onnxfuse.normalise import normalise
from onnxfuse.verify.sessions import Session

TINY = Path(__file__).parent.parent / "examples" / "tiny_llama.onnx"
INPUTS = "float[2,3,8] x, float[2,3,8] r"
WEIGHTS = [("w", "8", 8), ("g", "8,4", 32), ("u", "8,4", 32), ("d", "4,8", 32)]
WEIGHTS += [(name, "8,8", 64) for name in ("pq", "pk", "pv", "po")]
CONSTANTS = ", ".join(
    f"float[{shape}] {name} = {{{', '.join(str(((7 + n) * i % 11 - 5) / 8) for i in range(size))}}}"
    for n, (name, shape, size) in enumerate(WEIGHTS)
)
NORM = "n = onnxfuse.RMSNorm<epsilon=1e-5>(x, w)"
MLP = 'n, s = onnxfuse.SkipRMSNorm<epsilon=1e-5>(x, r, w) y = onnxfuse.GatedMLP<activation="silu">({x}, g, u, d)'
ATTENTION = """
    n{i} = onnxfuse.RMSNorm<epsilon=1e-5>({x}, w)
    q{i} = MatMul(n{i}, pq) k{i} = MatMul(n{i}, pk) v{i} = MatMul({v}, pv) b{i} = Add(v{i}, w)
    a{i} = onnxfuse.Attention<num_heads={heads}, kv_num_heads={heads}, causal=1>(q{i}, k{i}, b{i})
    y{i} = MatMul(a{i}, po)
"""


def attention(x: str = "x", v: str = "n", heads: int = 2, i: str = "") -> str:
    return ATTENTION.format(x=x, v=v, heads=heads, i=i)


def with_bodies(body: str, outputs: str, inputs: str = INPUTS, *, bfloat16: bool = False) -> ir.Model:
    model = model_of(body, inputs, outputs, CONSTANTS)
    for value in (*model.graph.inputs, *model.graph.outputs) if bfloat16 else ():
        value.dtype = ir.DataType.BFLOAT16
    for value in model.graph.initializers.values() if bfloat16 else ():
        value.const_value = ir.Tensor(value.const_value.numpy().astype(ml_dtypes.bfloat16), name=value.name)
        value.dtype = ir.DataType.BFLOAT16
    facts = normalise(model)
    for node in model.graph:
        if node.domain == "onnxfuse":
            soundness.describe(node, facts)
            attach(node, model)
    return model


def joined(body: str, outputs: str = "float[2,3,8] y") -> ir.Model:
    """The model of fused operators after they are joined to larger ones."""
    model = onnxfuse.optimize(with_bodies(body, outputs), level="block").model
    check_sound(model)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    return model


def check_equal(model: ir.Model, body: str, outputs: str = "float[2,3,8] y") -> None:
    """With the library and without it, the model computes what its operators compute one by one."""
    rng = np.random.default_rng(0)
    feed = {name: rng.standard_normal((2, 3, 8)).astype(np.float32) for name in ("x", "r")}
    want = onnxfuse.session(with_bodies(body, outputs)).run(None, feed)
    for session in (onnxfuse.session(model), onnxfuse.session(model, ops=[])):
        for got, value in zip(session.run(None, feed), want, strict=True):
            # five products of 8 terms of size 1 in a row, in another order than the kernels': 64 units, and up to 84
            # units (1e-5) of values that grow beyond 1 from layer to layer
            np.testing.assert_allclose(got, value, atol=64 * np.finfo(np.float32).eps, rtol=1e-5)


@pytest.mark.parametrize(
    ("body", "outputs", "expected"),
    [
        (MLP.format(x="n"), "float[2,3,8] y", ["GatedMLP"]),
        (MLP.format(x="n"), "float[2,3,8] y, float[2,3,8] s", ["GatedMLP"]),
        (
            MLP.format(x="n").replace("n, s = onnxfuse.SkipRMSNorm<epsilon=1e-5>(x, r, w)", NORM),
            "float[2,3,8] y",
            ["GatedMLP"],
        ),
        (attention(), "float[2,3,8] y", ["AttentionBlock"]),
        (attention().replace("y =", "o =") + "y = Add(o, w)", "float[2,3,8] y", ["AttentionBlock"]),
    ],
    ids=("mlp", "mlp with its sum", "mlp without a residual", "attention with a bias", "attention with an output bias"),
)
def test_half_a_layer_is_one_node(body: str, outputs: str, expected: list[str]):
    model = joined(body, outputs)
    assert operators(model) == expected
    check_equal(model, body, outputs)


@pytest.mark.parametrize(
    ("body", "outputs", "norm"),
    [
        (MLP.format(x="s"), "float[2,3,8] y", "SkipRMSNorm"),
        (MLP.format(x="n"), "float[2,3,8] y, float[2,3,8] n", "SkipRMSNorm"),
        (MLP.format(x="n") + " z = Neg(n)", "float[2,3,8] y, float[2,3,8] z", "SkipRMSNorm"),
        (attention(v="r"), "float[2,3,8] y", "RMSNorm"),
        (attention(v="t").replace("q = MatMul", "t = Neg(n) q = MatMul"), "float[2,3,8] y", "RMSNorm"),
    ],
    ids=("no norm", "norm is an output", "norm is read", "two sources", "leaves and returns"),
)
def test_a_norm_that_others_read_stays_as_it_is(body: str, outputs: str, norm: str):
    model = joined(body, outputs)
    assert norm in operators(model) and "AttentionBlock" not in operators(model)
    check_equal(model, body, outputs)


def test_attention_without_an_output_projection_stays_as_its_operators():
    body = attention().replace("y = MatMul(a, po)", "y = Neg(a)")
    model = joined(body)
    assert operators(model) == ["Linear", "Attention", "Neg"]
    check_equal(model, body)


@pytest.mark.parametrize("size", [1, 8])
def test_a_bias_of_one_element_is_added_behind_the_product(size: int):
    """Linear takes one as long as the product."""
    text = """<ir_version: 8, opset_import: ["" : 18]> g (float[b,8] x) => (float[b,8] y)
        { a = MatMul (x, w) y = Add (a, c) }"""
    model = onnx.parser.parse_model(text)
    for name, array in (("w", np.eye(8)), ("c", np.ones(size))):
        model.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
    result = onnxfuse.optimize(model, level="block", verify="none")
    assert operators(result.model) == (["Linear"] if size == 8 else ["MatMul", "Add"])
    x = np.ones((2, 8), np.float32)
    np.testing.assert_array_equal(onnxfuse.session(result.model).run(None, {"x": x})[0], x + 1)


def test_what_would_read_its_own_output_stays_as_it_is():
    body = MLP.format(x="n").replace("y =", "t = Neg(s) m = ReduceMean<keepdims=0>(t) b = Add(w, m) y =")
    body = body.replace("(n, g, u, d)", "(n, g, u, d, , , b)")
    model = joined(body)
    assert "SkipRMSNorm" in operators(model)
    check_equal(model, body)


def test_a_block_that_needs_another_overload_stays_as_its_operators():
    layers = [("x", 2), ("y0", 4), ("y1", 2)]
    body = " ".join(attention(x, v=f"n{i}", heads=heads, i=str(i)) for i, (x, heads) in enumerate(layers))
    body += " y = Identity(y2)"
    model = joined(body)
    assert operators(model) == ["AttentionBlock", "Linear", "Attention", "Linear", "AttentionBlock"]
    assert len([name for name in model.functions if name[1] == "AttentionBlock"]) == 1
    check_equal(model, body)


def rotary(q: str = "q", k: str = "k", tables: str = "c, e", other: str = "c, e", how: str = "interleaved=0") -> str:
    return f"""
        q = MatMul(x, pq) k = MatMul(x, pk)
        tq = onnxfuse.RotaryEmbedding<num_heads=2, interleaved=0>({q}, {tables})
        tk = onnxfuse.RotaryEmbedding<num_heads=2, {how}>({k}, {other})
        y = onnxfuse.Attention<num_heads=2, kv_num_heads=2, causal=1>(tq, tk, r)
    """


TABLES = "float[1,3,2] c, float[1,3,2] e, float[1,3,2] c2"


@pytest.mark.parametrize(
    ("body", "outputs", "expected"),
    [
        (rotary(), "float[2,3,8] y", 0),
        (rotary(other="c2, e"), "float[2,3,8] y", 2),
        (rotary(other="e, c"), "float[2,3,8] y", 2),
        (rotary(how="interleaved=1"), "float[2,3,8] y", 2),
        (rotary(), "float[2,3,8] y, float[2,3,8] tk", 2),
    ],
    ids=("alike", "another table", "tables exchanged", "another way", "turned keys are an output"),
)
def test_attention_turns_queries_and_keys_that_are_turned_alike(body: str, outputs: str, expected: int):
    model = with_bodies(body, outputs, f"{INPUTS}, {TABLES}")
    fused = onnxfuse.optimize(model, level="block").model
    assert operators(fused).count("RotaryEmbedding") == expected
    rng = np.random.default_rng(0)
    feed = {name: rng.standard_normal((2, 3, 8)).astype(np.float32) for name in ("x", "r")}
    feed |= {name: rng.standard_normal((1, 3, 2)).astype(np.float32) for name in ("c", "e", "c2")}
    used = {value.name for value in model.graph.inputs if value.uses()}
    want = onnxfuse.session(model).run(None, feed)
    assert used <= feed.keys()
    for session in (onnxfuse.session(fused), onnxfuse.session(fused, ops=[])):
        for got, value in zip(session.run(None, feed), want, strict=True):
            # one product of 8 terms of size 1, two rotations, a softmax of 3 terms
            np.testing.assert_allclose(got, value, atol=64 * np.finfo(np.float32).eps, rtol=1e-5)


@pytest.mark.parametrize("kv_cache", ["concat", "shared"])
def test_a_llama_of_blocks_is_equal_and_small(tmp_path, kv_cache):
    path = tmp_path / "fused.onnx"
    result = onnxfuse.optimize(TINY, path, level="block", kv_cache=kv_cache, verify="model")
    assert result.report.verification.passed
    assert result.report.fused == {"Embedding": 1, "RotaryTable": 1, "AttentionBlock": 2, "GatedMLP": 2, "Linear": 1}
    assert result.report.nodes_after <= 16
    names, halves = {node.name for node in result.model.graph}, ("self_attn/AttentionBlock", "mlp/GatedMLP")
    assert {f"/llama/model/layers.{i}/{half}" for i in (0, 1) for half in halves} <= names
    onnxfuse.optimize(path, tmp_path / "again.onnx", level="block", kv_cache=kv_cache)
    assert (tmp_path / "again.onnx").read_bytes() == path.read_bytes()


def test_the_kernels_run_inside_blocks(tmp_path):
    import onnxruntime

    onnxfuse.optimize(TINY, tmp_path / "fused.onnx", level="block", verify="none")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxfuse.session(tmp_path / "fused.onnx", options=options)
    run = {node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node if node.domain == "onnxfuse"}
    assert run == {"Attention", "Embedding", "GatedMLP", "Linear", "NormLinear", "SkipNormLinear", "RotaryTable"}


def test_bfloat16_runs_on_the_cpu_once_the_products_are_inside():
    """ONNX Runtime has no bfloat16 MatMul there. The weights are exact in bfloat16, so float32 tells the result."""
    narrow, wide = (with_bodies(attention(), "float[2,3,8] y", bfloat16=half) for half in (True, False))
    fused = onnxfuse.optimize(narrow, level="block").model
    assert operators(fused) == ["AttentionBlock"]
    feed = {name: np.ones((2, 3, 8), ml_dtypes.bfloat16) for name in ("x", "r")}
    feed["x"] *= np.random.default_rng(0).standard_normal((2, 3, 8)).astype(ml_dtypes.bfloat16)
    (got,) = Session(fused, library=onnxfuse.library_path()).run(feed).values()
    (want,) = onnxfuse.session(wide).run(["y"], {name: array.astype(np.float32) for name, array in feed.items()})
    # rounded to bfloat16 (2^-8) five times in a row: normed, projected, biased, attended, projected
    assert np.abs(got.astype(np.float32) - want).max() < 4 * 2.0**-8 * np.abs(want).max()
