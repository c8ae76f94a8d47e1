"""level="block": half a layer is one node, whose body holds the fused operators."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from graphs import check_sound, model_of, operators

import onnxfuse
from onnxfuse import soundness
from onnxfuse.blocks import group_blocks
from onnxfuse.custom_ops.functions import attach
from onnxfuse.normalise import normalise

TINY = Path(__file__).parent.parent / "examples" / "tiny_llama.onnx"
INPUTS = "float[2,3,8] x, float[2,3,8] r"
CONSTANTS = ", ".join(
    f"float[{shape}] {name} = {{{', '.join(str((7 * i % 11 - 5) / 8) for i in range(size))}}}"
    for name, shape, size in [("w", "8", 8), ("g", "8,4", 32), ("u", "8,4", 32), ("d", "4,8", 32), ("p", "8,8", 64)]
)
MLP = 'n, s = onnxfuse.SkipRMSNorm<epsilon=1e-5>(x, r, w) y = onnxfuse.GatedMLP<activation="silu">({x}, g, u, d)'
ATTENTION = """
    n = onnxfuse.RMSNorm<epsilon=1e-5>(x, w)
    q = MatMul(n, p) k = MatMul(n, p) v = MatMul({v}, p) vb = Add(v, w)
    a = onnxfuse.Attention<num_heads=2, kv_num_heads=2, causal=1>(q, k, vb)
    y = MatMul(a, p)
"""


def grouped(body: str, outputs: str = "float[2,3,8] y") -> ir.Model:
    """The model after its halves of layers are put together, with the bodies of all operators."""
    model = model_of(body, INPUTS, outputs, CONSTANTS)
    facts = normalise(model)
    for node in model.graph:
        if node.domain == "onnxfuse":
            soundness.describe(node, facts)
            attach(node, model)
    group_blocks(model, facts)
    soundness.complete(model, facts)
    check_sound(model)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    return model


def check_equal(model: ir.Model, body: str, outputs: str = "float[2,3,8] y") -> None:
    """With the library and without it, the model computes what its operators compute one by one."""
    rng = np.random.default_rng(0)
    feed = {name: rng.standard_normal((2, 3, 8)).astype(np.float32) for name in ("x", "r")}
    want = onnxfuse.session(model_of(body, INPUTS, outputs, CONSTANTS)).run(None, feed)
    for session in (onnxfuse.session(model), onnxfuse.session(model, ops=[])):
        for got, value in zip(session.run(None, feed), want, strict=True):
            # five products of 8 terms of size 1 in a row, in another order than the kernels'
            np.testing.assert_allclose(got, value, atol=64 * np.finfo(np.float32).eps, rtol=1e-5)


@pytest.mark.parametrize(
    ("body", "outputs", "expected"),
    [
        (MLP.format(x="n"), "float[2,3,8] y", ["GatedMLPBlock"]),
        (MLP.format(x="n"), "float[2,3,8] y, float[2,3,8] s", ["GatedMLPBlock"]),
        (ATTENTION.format(v="n"), "float[2,3,8] y", ["AttentionBlock"]),
        (ATTENTION.format(v="n").replace("y =", "o =") + "y = Add(o, w)", "float[2,3,8] y", ["AttentionBlock"]),
    ],
    ids=("mlp", "mlp with its sum", "attention with a bias", "attention with an output bias"),
)
def test_half_a_layer_is_one_node(body: str, outputs: str, expected: list[str]):
    model = grouped(body, outputs)
    assert operators(model) == expected
    check_equal(model, body, outputs)


@pytest.mark.parametrize(
    ("body", "outputs"),
    [
        (MLP.format(x="s"), "float[2,3,8] y"),
        (MLP.format(x="n"), "float[2,3,8] y, float[2,3,8] n"),
        (MLP.format(x="n") + " z = Neg(n)", "float[2,3,8] y, float[2,3,8] z"),
        (ATTENTION.format(v="r"), "float[2,3,8] y"),
        ("t = Neg(n)" + ATTENTION.format(v="t"), "float[2,3,8] y"),
        (ATTENTION.format(v="n").replace("y = MatMul(a, p)", "y = Neg(a)"), "float[2,3,8] y"),
    ],
    ids=("no norm", "norm is an output", "norm is read", "two sources", "leaves and returns", "no output projection"),
)
def test_another_structure_stays_as_it_is(body: str, outputs: str):
    if "t = Neg(n)" in body:  # in the order of the graph
        body = ATTENTION.format(v="t").replace("q = MatMul", "t = Neg(n) q = MatMul")
    model = grouped(body, outputs)
    assert not [operator for operator in operators(model) if operator.endswith("Block")]
    check_equal(model, body, outputs)


def test_what_would_read_its_own_output_stays_as_it_is():
    body = MLP.format(x="n").replace("y =", "t = Neg(s) m = ReduceMean<keepdims=0>(t) b = Add(w, m) y =")
    body = body.replace("(n, g, u, d)", "(n, g, u, d, , , b)")
    model = grouped(body)
    assert not [operator for operator in operators(model) if operator.endswith("Block")]
    check_equal(model, body)


def test_a_block_that_needs_another_overload_stays_as_its_operators():
    mlp = """n{i}, s{i} = onnxfuse.SkipRMSNorm<epsilon=1e-5>({x}, r, w)
        y{i} = onnxfuse.GatedMLP<activation="{act}">(n{i}, g, u, d)"""
    layers = [("x", "silu"), ("y0", "gelu"), ("y1", "silu")]
    body = " ".join(mlp.format(i=i, x=x, act=act) for i, (x, act) in enumerate(layers)) + " y = Identity(y2)"
    model = grouped(body)
    assert operators(model) == ["GatedMLPBlock", "SkipRMSNorm", "GatedMLP", "GatedMLPBlock"]
    assert len([name for name in model.functions if name[1] == "GatedMLPBlock"]) == 1
    check_equal(model, body)


@pytest.mark.parametrize("kv_cache", ["concat", "shared"])
def test_a_llama_of_blocks_is_equal_and_small(tmp_path, kv_cache):
    path = tmp_path / "fused.onnx"
    result = onnxfuse.optimize(TINY, path, level="block", kv_cache=kv_cache, verify="model")
    assert result.report.verification.passed
    assert result.report.fused == {"RotaryTable": 1, "AttentionBlock": 2, "GatedMLPBlock": 2, "SkipRMSNorm": 1}
    assert result.report.nodes_after <= 16
    names, halves = {node.name for node in result.model.graph}, ("self_attn/AttentionBlock", "mlp/GatedMLPBlock")
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
    assert run == {"Attention", "GatedMLP", "RMSNorm", "RotaryEmbedding", "RotaryTable", "SkipRMSNorm"}
