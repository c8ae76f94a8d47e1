"""Attention whose queries and keys are float32 where its products are float16, as torch's autocast exports it."""

import numpy as np
import onnx_ir as ir
import onnxruntime
from graphs import model_of

import onnxfuse

B, N, S, D = 2, 4, 5, 8
INPUTS = f"""float[{B},{N},{S},{D}] q, float[{B},{S},{N},{D}] k, float16[{B},{S},{N},{D}] v, float[{B},1,{S},{S}] mask,
    float[1,1,{S},{D}] cos, float[1,1,{S},{D}] sin"""
BODY = """
    heads = Transpose<perm=[0,2,1,3]>(k)
    straight = Mul(heads, cos)
    low, high = Split<axis=-1, num_outputs=2>(heads)
    minus = Neg(high)
    turned = Concat<axis=-1>(minus, low)
    across = Mul(turned, sin)
    keys = Add(straight, across)
    kt = Transpose<perm=[0,1,3,2]>(keys)
    qc = Cast<to=10>(q)
    kc = Cast<to=10>(kt)
    factor = Cast<to=10>(quarter)
    raw = MatMul(qc, kc)
    scaled = Mul(raw, factor)
    wide = Cast<to=1>(scaled)
    scores = Add(wide, mask)
    p = Softmax<axis=-1>(scores)
    pc = Cast<to=10>(p)
    values = Transpose<perm=[0,2,1,3]>(v)
    wide_values = Cast<to=1>(values)
    c = MatMul(pc, values)
    ct = Transpose<perm=[0,2,1,3]>(c)
    y = Reshape(ct, flat)
"""
CONSTANTS = f"float quarter = {{0.25}}, int64[3] flat = {{0, 0, {N * D}}}"


def test_keys_that_are_an_output_keep_their_dtype():
    outputs = f"float16[{B},{S},{N * D}] y, float[{B},{N},{S},{D}] keys, float[{B},{N},{S},{D}] wide_values"
    original = model_of(BODY, INPUTS, outputs, CONSTANTS)
    rng = np.random.default_rng(0)
    feeds = {"q": rng.standard_normal((B, N, S, D)).astype(np.float32)}
    feeds["k"] = rng.standard_normal((B, S, N, D)).astype(np.float32)
    feeds["v"] = rng.standard_normal((B, S, N, D)).astype(np.float16)
    angles = rng.standard_normal((1, 1, S, D // 2)).astype(np.float32)
    feeds["cos"], feeds["sin"] = (np.concatenate([turn, turn], -1) for turn in (np.cos(angles), np.sin(angles)))
    feeds["mask"] = rng.standard_normal((B, 1, S, S)).astype(np.float32)
    want = onnxruntime.InferenceSession(ir.to_proto(original).SerializeToString()).run(None, feeds)

    result = onnxfuse.optimize(original, verify="none")

    assert result.report.fused == {"Attention": 1, "RotaryEmbedding": 1}, result.report.refused
    for session in (onnxfuse.session(result.model), onnxfuse.session(result.model, ops=[])):
        y, keys, values = session.run(None, feeds)
        np.testing.assert_array_equal(values, want[2])
        assert keys.dtype == values.dtype == np.float32
        np.testing.assert_allclose(keys, want[1], atol=4 * np.finfo(np.float32).eps, rtol=0)  # 2 products, 1 sum
        # The graph rounds 5 weights, their products and q, k to float16: values of size 1, some ten roundings.
        np.testing.assert_allclose(y.astype(np.float32), want[0].astype(np.float32), atol=10 * 2**-11, rtol=0)
