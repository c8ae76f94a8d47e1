"""Rows that see no key, zeroed behind attention: Attention does so itself, where the rows are just those."""

import numpy as np
import onnx_ir as ir
import pytest
from graphs import model_of

import onnxfuse

N, D = 4, 8
# Causal, aligned to the last key, and padded: `seen` [B, 1, S, L], as transformers' exporter hides and zeroes.
BODY = """
    qr = Reshape(q, heads) qh = Transpose<perm=[0,2,1,3]>(qr)
    kr = Reshape(k, heads) kh = Transpose<perm=[0,2,1,3]>(kr) ks = Concat<axis=2>(past_key, kh)
    vr = Reshape(v, heads) vh = Transpose<perm=[0,2,1,3]>(vr) vs = Concat<axis=2>(past_value, vh)
    q_shape = Shape<start=1, end=2>(q) k_shape = Shape<start=2, end=3>(ks)
    S = Squeeze(q_shape) L = Squeeze(k_shape) P = Sub(L, S)
    columns = Range(nought, L, step) steps = Range(nought, S, step) rows = Add(steps, P) row = Unsqueeze(rows, one)
    causal = LessOrEqual(columns, row)
    kept = Cast<to=9>(mask) padding = Unsqueeze(kept, middle)
    seen = And(causal, padding)
    hidden = Not(seen) number = Cast<to=1>(hidden) bias = Mul(number, least)
    kt = Transpose<perm=[0,1,3,2]>(ks)
    raw = MatMul(qh, kt) scaled = Mul(raw, factor) scores = Add(scaled, bias)
    p = Softmax<axis=-1>(scores)
    c = MatMul(p, vs)
    ones = Cast<to=1>(COUNTED) count = ReduceSum(ones, last)
    unattended = Less(count, enough)
    ZEROED
    y = Reshape(back, flat)
"""
HEADS_FIRST = "z = Where(unattended, zero, c) back = Transpose<perm=[0,2,1,3]>(z)"
ROWS_FIRST = "ct = Transpose<perm=[0,2,1,3]>(c) u = Transpose<perm=[0,2,1,3]>(unattended) back = Where(u, zero, ct)"
CONSTANTS = f"""int64[4] heads = {{0, 0, {N}, {D}}}, int64[3] flat = {{0, 0, {N * D}}}, int64[1] one = {{1}},
    int64[1] last = {{-1}}, int64[2] middle = {{1, 2}}, int64 nought = {{0}}, int64 step = {{1}},
    float factor = {{0.25}}, float least = {{LEAST}}, float zero = {{REPLACED}}, float enough = {{ENOUGH}}"""


def model(
    zeroed: str = HEADS_FIRST, *, counted: str = "seen", enough: float = 1, replaced: float = 0, least: float = -3.4e38
) -> ir.Model:
    body = BODY.replace("ZEROED", zeroed).replace("COUNTED", counted)
    constants = CONSTANTS.replace("ENOUGH", f"{enough:.1f}").replace("REPLACED", f"{replaced:.1f}")
    rows = ", ".join(f"float[B, S, {N * D}] {name}" for name in "qkv")
    past = ", ".join(f"float[B, {N}, P, {D}] {name}" for name in ("past_key", "past_value"))
    inputs = f"{rows}, {past}, int64[B, L] mask"
    return model_of(body, inputs, f"float[B, S, {N * D}] y", constants.replace("LEAST", f"{least:e}"))


def fused(original: ir.Model) -> list[str]:
    """The operators that a verified rewrite leaves."""
    return [node.op_type for node in onnxfuse.optimize(original, verify="match").model.graph]


def operators_after(original: ir.Model) -> list[str]:
    """What a verified rewrite leaves, which computes what the original does."""
    rng = np.random.default_rng(0)
    B, S, P = 3, 4, 2
    feeds = {name: rng.standard_normal((B, S, N * D), dtype=np.float32) for name in "qkv"}
    feeds |= {name: rng.standard_normal((B, N, P, D), dtype=np.float32) for name in ("past_key", "past_value")}
    feeds["mask"] = np.array([[1] * 6, [0, 0, 0, 0, 1, 1], [1, 1, 1, 1, 0, 0]])  # the second's first queries see none
    (want,) = onnxfuse.session(original).run(None, feeds)
    rewritten = onnxfuse.optimize(original, verify="match").model
    for session in (onnxfuse.session(rewritten), onnxfuse.session(rewritten, ops=[])):
        (got,) = session.run(None, feeds)
        # sums of 8 products and of 6 weighted values, all of size 1 or so
        np.testing.assert_allclose(got, want, atol=16 * np.finfo(np.float32).eps, rtol=0)
    return [node.op_type for node in rewritten.graph]


@pytest.mark.parametrize("zeroed", [HEADS_FIRST, ROWS_FIRST], ids=("heads first", "rows first"))
def test_attention_zeroes_the_rows_that_see_no_key(zeroed: str):
    assert operators_after(model(zeroed)) == ["Attention"]


@pytest.mark.parametrize(
    "changed",
    [{"enough": 2}, {"enough": 0}, {"counted": "causal"}, {"counted": "padding"}],
    ids=("that see a single key", "none", "without the padding", "without the causal mask"),
)
def test_other_rows_stay_zeroed(changed: dict):
    assert "Where" in fused(model(**changed))


def test_rows_that_get_another_number_stay():
    left = fused(model(replaced=1))
    assert "Attention" in left and "Where" in left


def test_zeroing_stays_behind_a_mask_that_hides_too_little():
    """A bias of -5 hides nothing: the operator takes it as a bias and sees every key."""
    assert "Where" in operators_after(model(least=-5))
