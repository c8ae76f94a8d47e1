"""Attention over a cache of rows [B, P, K, D]: joined inside the operator, unless something else reads the whole."""

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from graphs import model_of

import onnxfuse

B, S, P, N, K, D = 2, 3, 4, 4, 2, 8
BODY = """
    qh = Transpose<perm=[0,2,1,3]>(q)
    ks = Concat<axis=1>(pk, k)
    vs = Concat<axis=1>(pv, v)
    ku = Unsqueeze(ks, three) ke = Expand(ku, group) kr = Reshape(ke, merged) kt = Transpose<perm=[0,2,3,1]>(kr)
    vu = Unsqueeze(vs, three) ve = Expand(vu, group) vr = Reshape(ve, merged) vh = Transpose<perm=[0,2,1,3]>(vr)
    raw = MatMul(qh, kt)
    scaled = Mul(raw, factor)
    m4 = Unsqueeze(mask, MASK_AXIS)
    scores = Add(scaled, m4)
    p = Softmax<axis=-1>(scores)
    c = MatMul(p, vh)
    ct = Transpose<perm=[0,2,1,3]>(c)
    y = Reshape(ct, flat)
"""
INPUTS = f"""float[{B},{S},{N},{D}] q, float[{B},{S},{K},{D}] k, float[{B},{S},{K},{D}] v,
    float[{B},{P},{K},{D}] pk, float[{B},{P},{K},{D}] pv"""
CONSTANTS = f"""float factor = {{0.25}}, int64[1] zero = {{0}}, int64[1] one = {{1}}, int64[1] three = {{3}},
    int64[5] group = {{1, 1, 1, {N // K}, 1}}, int64[4] merged = {{0, 0, {N}, {D}}},
    int64[3] flat = {{0, 0, {N * D}}}"""


def model(
    *, mask: str = f"float[{B},{S},{P + S}] mask", axis: str = "one", more: str = "", outputs: str = ""
) -> ir.Model:
    body = BODY.replace("MASK_AXIS", axis) + more
    return model_of(body, f"{INPUTS}, {mask}", f"float[{B},{S},{N * D}] y{outputs}", CONSTANTS)


def fused(original: ir.Model, mask: tuple[int, ...] = (B, S, P + S)) -> ir.Node:
    """The only Attention after a verified rewrite, which computes what the original does."""
    rng = np.random.default_rng(0)
    shapes = {"q": (B, S, N, D), "k": (B, S, K, D), "v": (B, S, K, D), "pk": (B, P, K, D), "pv": (B, P, K, D)}
    feeds = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in {**shapes, "mask": mask}.items()}
    want = onnxruntime.InferenceSession(ir.to_proto(original).SerializeToString()).run(None, feeds)
    rewritten = onnxfuse.optimize(original, verify="match").model
    for session in (onnxfuse.session(rewritten), onnxfuse.session(rewritten, ops=[])):
        for got, value in zip(session.run(None, feeds), want, strict=True):
            # sums of 8 products and of 7 weighted values, all of size 1 or so
            np.testing.assert_allclose(got, value, atol=16 * np.finfo(np.float32).eps, rtol=0)
    (node,) = (n for n in rewritten.graph if n.op_type == "Attention" and n.domain == "onnxfuse")
    assert node.attributes["kv_num_heads"].value == K
    return node


def past_of(node: ir.Node) -> list[str | None]:
    return [None if value is None else value.name for value in node.inputs[3:5]]


def test_the_rows_of_the_past_are_read_where_they_are():
    node = fused(model())
    assert past_of(node) == ["pk", "pv"]
    assert node.attributes["past_rows"].value == 1
    assert len(node.outputs) == 1
    assert {n.op_type for n in node.graph} == {"Attention", "Reshape"}


@pytest.mark.parametrize(("name", "other"), [("ks", "z = Neg(ks)"), ("vs", "z = Neg(vs)")])
def test_a_whole_that_is_read_elsewhere_is_read_by_the_operator_too(name: str, other: str):
    node = fused(model(more=other, outputs=f", float[{B},{P + S},{K},{D}] z"))
    assert past_of(node) in ([], [None, None])
    assert "past_rows" not in node.attributes


def test_a_whole_that_is_an_output_stays():
    node = fused(model(outputs=f", float[{B},{P + S},{K},{D}] ks, float[{B},{P + S},{K},{D}] vs"))
    assert past_of(node) in ([], [None, None])


def test_a_mask_without_heads_is_passed_as_it_is():
    assert fused(model()).inputs[6].name == "mask"


def test_a_mask_of_heads_keeps_its_axis():
    """[N, S, L] broadcasts over batches, not over heads."""
    node = fused(model(mask=f"float[{N},{S},{P + S}] mask", axis="zero"), mask=(N, S, P + S))
    assert node.inputs[6].name != "mask"
    assert len(node.inputs[6].shape or node.inputs[6].producer().outputs[0].shape) == 4
