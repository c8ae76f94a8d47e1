"""Heads repeated for grouped queries: one by one, not all of them in turn."""

import numpy as np
import pytest
from graphs import model_of, named

import onnxfuse
from onnxfuse.facts import Facts
from onnxfuse.heads import repeats_each_head
from onnxfuse.verify.sessions import Session

N, K, D = 4, 2, 8


def attention(axis: int, spread: list[int]):
    """Attention of N heads over K of them, each or all repeated behind an axis put in at `axis`."""
    body = """
        ku = Unsqueeze(k, axis) ke = Expand(ku, spread) kr = Reshape(ke, all)
        vu = Unsqueeze(v, axis) ve = Expand(vu, spread) vr = Reshape(ve, all)
        t = Transpose<perm=[0,1,3,2]>(kr) scores = MatMul(q, t) p = Softmax<axis=-1>(scores) y = MatMul(p, vr)
    """
    constants = f"""int64[1] axis = {{{axis}}}, int64[5] spread = {{{", ".join(map(str, spread))}}},
        int64[4] all = {{0, {N}, -1, {D}}}"""
    inputs = f"float[B, {N}, S, {D}] q, float[B, {K}, S, {D}] k, float[B, {K}, S, {D}] v"
    return model_of(body, inputs, f"float[B, {N}, S, {D}] y", constants)


@pytest.mark.parametrize(
    ("axis", "spread", "each"),
    [(2, [1, 1, 2, 1, 1], True), (-3, [1, 1, 2, 1, 1], True), (1, [1, 2, 1, 1, 1], False)],
)
def test_as_many_heads_as_repetitions_are_told_apart_by_their_axis(axis: int, spread: list[int], each: bool):
    model = attention(axis, spread)
    assert repeats_each_head(named(model, "kr"), Facts(model)) == each
    made = onnxfuse.optimize(model, verify="none").model
    heads = [node.attributes["kv_num_heads"].value for node in made.graph if node.op_type == "Attention"]
    assert heads == [K if each else N]


def test_heads_repeated_in_turn_keep_their_order():
    model = attention(1, [1, 2, 1, 1, 1])
    rng = np.random.default_rng(0)
    feeds = {name: rng.standard_normal((2, n, 5, D), dtype=np.float32) for name, n in (("q", N), ("k", K), ("v", K))}
    before = Session(model).run(feeds)["y"]
    after = Session(onnxfuse.optimize(model, verify="none").model).run(feeds)["y"]
    # sums of D products and of 5 weighted values, all of size 1 or so
    np.testing.assert_allclose(after, before, atol=16 * np.finfo(np.float32).eps, rtol=0)
