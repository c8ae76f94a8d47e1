"""Heads folded into the batch or apart by group are computed unfolded: the same values, whoever shares what."""

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from graphs import check_sound, model_of, operators

from onnxfuse.normalise import normalise

SIZES = {"L": 7}
SHAPES = """
    int64[3] fold = {-1, 5, 8}, int64[5] groups = {0, 2, 2, 5, 8}, int64[4] back = {0, 4, 5, -1},
    int64[1] second = {1}, int64[1] third = {2}, float two = {2}, int64[1] last = {-1},
    float[1,1,1,1,1] low = {-9}
"""
QUERIES = "float[3,4,5,8] q"


def after(body: str, inputs: str, output: str, more: str = "") -> list[str]:
    """The operators after normalising, which must not change what is computed by more than the order of sums does."""
    model = model_of(body, inputs, output, ", ".join(filter(None, (SHAPES.strip(), more))))
    rng = np.random.default_rng(0)
    feeds = {
        value.name: rng.standard_normal([d if isinstance(d, int) else SIZES[d.value] for d in value.shape])
        for value in model.graph.inputs
    }
    feeds = {name: array > 0 if name.startswith("seen") else array.astype(np.float32) for name, array in feeds.items()}

    def results() -> np.ndarray:
        return onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString()).run(None, feeds)[0]

    before = results()
    normalise(model)
    check_sound(model)
    # 8 products of numbers below 5 at the most, in any order
    np.testing.assert_allclose(results(), before, rtol=0, atol=8 * 25 * 2**-22)
    return operators(model)


def test_scores_of_groups_are_those_of_all_heads():
    body = """
        g = Reshape(q, groups) t = Transpose<perm=[0,1,3,2]>(k) u = Unsqueeze(t, third) s = MatMul(g, u)
        h = Mul(s, two) m = Unsqueeze(mask, second) n = Add(h, m) w = Softmax<axis=-1>(n) y = Reshape(w, back)
    """
    found = after(body, f"{QUERIES}, float[3,2,L,8] k, float[3,1,5,L] mask", "float[3,4,5,L] y")
    assert [op for op in found if op in ("MatMul", "Mul", "Add", "Softmax")] == ["MatMul", "Mul", "Add", "Softmax"]
    assert found[-1] == "Softmax"  # nothing is put together again behind it


@pytest.mark.parametrize(
    ("body", "inputs"),
    [
        ("g = Reshape(q, groups) u = Unsqueeze(k, second) y = MatMul(g, u)", "float[3,2,8,L] k"),  # shared by all K
        ("g = Reshape(q, groups) y = MatMul(g, k)", "float[3,2,2,8,L] k"),
        ("g = Reshape(q, groups) y = MatMul(g, k)", "float[3,1,1,8,L] k"),
        ("g = Reshape(q, groups) y = Add(g, k)", "float[3,1,2,5,8] k"),  # a mask of each head of a group
        ("g = Reshape(q, groups) y = Add(g, k)", "float[2,1,5,8] k"),  # and of each group
        ("g = Reshape(q, groups) y = Where(seen, g, low)", "bool[3,1,1,5,8] seen"),
        ("g = Reshape(q, groups) y = Softmax<axis=2>(g)", ""),
        ("f = Reshape(q, fold) y = Add(f, k)", "float[12,5,8] k"),
        ("f = Reshape(q, fold) y = Add(f, k)", "float[1,1,5,8] k"),  # one axis more than what is folded has
        ("f = Reshape(q, fold) h = Reshape(k, fold) y = Mul(f, h)", "float[4,3,5,8] k"),  # B and N exchanged
        ("f = Reshape(q, fold) h = Reshape(k, fold) y = Mul(f, h)", "float[6,2,5,8] k"),
        ("f = Reshape(q, fold) m = ReduceMax(f, last) d = Sub(f, m) e = Exp(d) y = Softmax<axis=-1>(e)", ""),
    ],
)
def test_whatever_stands_beside_folded_heads_keeps_its_meaning(body, inputs):
    after(body, ", ".join(filter(None, (QUERIES, inputs))), "float[] y")


def test_the_only_head_of_a_row_is_repeated_in_its_own_shape():
    """Multi-query attention without a cache: its rows are the head, so that two axes are put in at once."""
    body = """
        rows = Reshape(k, apart) h = Transpose<perm=[0,2,1,3]>(rows) u = Unsqueeze(h, third)
        e = Expand(u, wide) r = Reshape(e, heads) y = MatMul(q, r)
    """
    more = "int64[4] apart = {0, 0, 1, 8}, int64[5] wide = {3, 1, 4, 8, 8}, int64[4] heads = {0, 4, 8, 8}"
    assert after(body, f"{QUERIES}, float[3,8,8] k", "float[3,4,5,8] y", more) == ["Unsqueeze", "Expand", "MatMul"]
