"""Operators that a graph has as such: ONNX's own from opset 23 on, and those that ONNX Runtime's tools write."""

from __future__ import annotations

import re

import onnx
import onnx_ir as ir
import pytest
from graphs import model_of
from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema

import onnxfuse
from onnxfuse import operators


def fused(body, **options):
    """The operators of domain onnxfuse, each fusion of which was compared with what it replaces."""
    result = onnxfuse.optimize(ir.to_proto(model_of(body, **options)))
    assert result.report.verification.passed
    return [node for node in result.model.graph if node.domain == "onnxfuse"]


@pytest.mark.parametrize("key", sorted(operators.DEFAULTS_OF_ONNX_RUNTIME), ids=lambda key: key[1])
def test_defaults_are_those_of_onnxruntime(key):
    (schema,) = (s for s in get_all_operator_schema() if (s.domain, s.name) == key)
    written = {name: default(attribute) for name, attribute in schema.attributes.items()}
    stated, ours = ({name: v for name, v in d.items() if v is not None} for d in (written, operators.defaults(*key, 1)))
    assert ours == pytest.approx(stated, rel=1e-6)


def default(attribute):
    """The default in a schema of ONNX Runtime, some of which have it in their text alone."""
    value = onnx.helper.get_attribute_value(onnx.AttributeProto.FromString(attribute._default_value))
    stated = re.search(r"Default value is (-?[\d.]+)(?!/)", attribute.description)
    return float(stated[1]) if value is None and stated else value


def test_an_epsilon_that_is_left_out_is_that_of_onnxruntime():
    (norm,) = fused("y = SimplifiedLayerNormalization(x, w)")
    assert norm.attributes["epsilon"].value == pytest.approx(1e-5)
    (skip,) = fused(
        "y, mean, deviation, sum = com.microsoft.SkipSimplifiedLayerNormalization(x, skip, w)",
        inputs="float[2,3,8] x, float[2,3,8] skip, float[8] w",
        outputs="float[2,3,8] y, float[2,3,8] sum",
    )
    assert skip.attributes["epsilon"].value == pytest.approx(1e-12)


def test_quick_gelu_is_silu_only_for_alpha_one():
    inputs = "float[2,8] x, float[2,8] up"
    silu, other = (f"a = com.microsoft.QuickGelu{alpha}(x) y = Mul(a, up)" for alpha in ("<alpha=1.0>", ""))
    assert [n.op_type for n in fused(silu, inputs=inputs, outputs="float[2,8] y")] == ["SwiGLU"]
    assert fused(other, inputs=inputs, outputs="float[2,8] y") == []


@pytest.mark.parametrize("size", [0, 4])
def test_rotary_embedding_of_rows_takes_its_tables_rows_by_position(size):
    table = f"float[32,{(size or 8) // 2}]"
    (rope,) = fused(
        f"y = RotaryEmbedding<num_heads=2, rotary_embedding_dim={size}>(x, cos, sin, positions)",
        inputs=f"float[B,S,16] x, {table} cos, {table} sin, int64[B,S] positions",
        outputs="float[B,S,16] y",
        opset=23,
    )
    assert rope.op_type == "RotaryEmbedding"
    assert (rope.attributes["rotary_dim"].value if size else 0) == size


MICROSOFT = "com.microsoft.RotaryEmbedding"
FLAT = "float[B,S,16] x, float[32,W] cos, float[32,W] sin, int64[B,S] positions"


@pytest.mark.parametrize(
    ("attributes", "inputs", "heads", "size"),
    [
        ("", "float[B,2,S,8] x, float[32,4] cos, float[32,4] sin, int64[B,S] positions", 2, 0),
        ("<interleaved=1>", "float[B,2,S,8] x, float[32,4] cos, float[32,4] sin, int64[B,S] positions", 2, 0),
        ("", FLAT.replace("W", "4"), 2, 0),
        ("<num_heads=4>", FLAT.replace("W", "2"), 4, 0),
        ("<num_heads=2, rotary_embedding_dim=4>", FLAT.replace("W", "2"), 2, 4),
    ],
    ids=("heads first", "interleaved", "rows", "rows of given heads", "part of a head"),
)
def test_rotary_embedding_of_onnxruntime(attributes: str, inputs: str, heads: int, size: int):
    y = inputs.split(" x")[0] + " y"
    (rope,) = fused(f"y = {MICROSOFT}{attributes}(x, positions, cos, sin)", inputs=inputs, outputs=y)
    assert rope.op_type == "RotaryEmbedding"
    assert rope.attributes["num_heads"].value == heads
    assert rope.attributes["interleaved"].value == int("interleaved" in attributes)
    assert (rope.attributes["rotary_dim"].value if size else 0) == size


@pytest.mark.parametrize(
    ("attributes", "inputs"),
    [
        ("<scale=2.0>", FLAT.replace("W", "4")),
        ("<is_packed_batching=1>", FLAT.replace("W", "4")),
        ("", FLAT.replace("W", "4").replace("int64[B,S]", "int64[1]")),
    ],
    ids=("scaled", "sequences of a batch one behind the other", "the first position alone"),
)
def test_rotary_embedding_of_onnxruntime_that_says_more_is_left_alone(attributes: str, inputs: str):
    body = f"y = {MICROSOFT}{attributes}(x, positions, cos, sin)"
    assert not fused(body, inputs=inputs, outputs="float[B,S,16] y")


CACHED = "float[B,S,32] q, float[B,S,16] k, float[B,S,16] v, float[B,2,P,8] past_key, float[B,2,P,8] past_value"
PRESENT = "float[B,S,32] y, float[B,2,L,8] present_key, float[B,2,L,8] present_value"


def test_attention_of_rows_with_a_cache_of_its_own():
    (attention,) = fused(
        "y, present_key, present_value = Attention<q_num_heads=4, kv_num_heads=2, is_causal=1>"
        "(q, k, v, , past_key, past_value)",
        inputs=CACHED,
        outputs=PRESENT,
        opset=24,
    )
    assert attention.op_type == "Attention"
    assert attention.attributes["causal"].value == 1
    assert [output.name for output in attention.outputs] == ["y", "present_key", "present_value"]


MULTI_HEAD = "com.microsoft.MultiHeadAttention<num_heads=4"
ALIKE = "float[B,S,32] q, float[B,S,32] k, float[B,S,32] v"
PAST = "float[B,4,P,8] past_key, float[B,4,P,8] past_value"
OWN_PRESENT = "float[B,S,32] y, float[B,4,L,8] present_key, float[B,4,L,8] present_value"


def test_attention_of_onnxruntime_with_a_cache_of_its_own():
    """Its bias stays one; a causal mask is counted from the last key, the past before it."""
    (attention,) = fused(
        f"y, present_key, present_value = {MULTI_HEAD}, unidirectional=1>(q, k, v, , , mask, past_key, past_value)",
        inputs=f"{ALIKE}, {PAST}, float[B,1,S,T] mask",
        outputs=OWN_PRESENT,
    )
    assert attention.op_type == "Attention"
    assert attention.attributes["causal"].value == 1
    assert attention.inputs[6].name == "mask"
    assert [output.name for output in attention.outputs] == ["y", "present_key", "present_value"]


def test_a_mask_of_onnxruntimes_attention_is_recognised():
    (attention,) = fused(
        "kept = Cast<to=9>(attention_mask) wide = Unsqueeze(kept, axes) bias = Where(wide, zero, least)"
        f"y = {MULTI_HEAD}, scale=0.5>(q, k, v, , , bias)",
        inputs=f"{ALIKE}, int64[B,S] attention_mask",
        outputs="float[B,S,32] y",
        constants="int64[2] axes = {1, 2}, float zero = {0}, float least = {-3.4e38}",
    )
    assert attention.inputs[5].name == "attention_mask" and len(attention.inputs) == 6
    assert attention.attributes["scale"].value == 0.5


@pytest.mark.parametrize(
    ("call", "more"),
    [
        ("(q, k, v, projected)", ", float[96] projected"),
        ("(q, k, v, , padded)", ", int32[B,S] padded"),
        (", unidirectional=1>(q, longer, longer)", ", float[B,M,32] longer"),
        ("(q, heads, heads)", ", float[B,4,M,8] heads"),
    ],
    ids=("biases of the projections", "a padding mask", "causal over more keys than queries", "keys heads first"),
)
def test_attention_of_onnxruntime_that_says_more_is_left_alone(call: str, more: str):
    call = call if call.startswith(",") else f">{call}"
    assert not fused(f"y = {MULTI_HEAD}{call}", inputs=ALIKE + more, outputs="float[B,S,32] y")


@pytest.mark.parametrize(
    ("body", "opset"),
    [
        (f"y = {MULTI_HEAD}>(unknown, k, v)", 18),
        (f"y = {MULTI_HEAD}>(q, unknown, v)", 18),
        (f"y, keys, values = {MULTI_HEAD}>(q, k, v, , , , unknown, past)", 18),
        (f"y = {MICROSOFT}(unknown, positions, table, table)", 18),
        (f"y = {MICROSOFT}(headed, positions, table, table)", 18),
        ("y = RotaryEmbedding<num_heads=4>(unknown, tables, tables)", 23),
    ],
    ids=("queries", "keys", "the past", "what is rotated", "the size of a head", "what is rotated by ONNX's operator"),
)
def test_what_is_of_unknown_shape_is_left_alone(body: str, opset: int):
    """It is refused with a reason, by matching: nothing runs, for nobody knows the operator before it."""
    model = model_of(
        f"unknown = com.microsoft.NobodyKnows(q) {body}",
        inputs=f"{ALIKE}, float[B,4,P,8] past, float[B,4,S,Z] headed, float[32,4] table, float[B,S,4] tables, "
        "int64[B,S] positions",
        outputs="float[B,S,32] y",
        opset=opset,
    )
    result = onnxfuse.optimize(model, verify="none")
    assert not [node for node in result.model.graph if node.domain == "onnxfuse"]


def test_causal_attention_that_knows_no_past_is_left_alone_behind_one():
    """It counts its queries from the first key, where the operator counts them from the last."""
    assert not fused(
        "k4 = Reshape(k, heads) k_first = Transpose<perm=[0,2,1,3]>(k4)"
        "v4 = Reshape(v, heads) v_first = Transpose<perm=[0,2,1,3]>(v4)"
        "q4 = Reshape(q, four) q_first = Transpose<perm=[0,2,1,3]>(q4)"
        "present_key = Concat<axis=2>(past_key, k_first) present_value = Concat<axis=2>(past_value, v_first)"
        "context = Attention<is_causal=1>(q_first, present_key, present_value)"
        "rows = Transpose<perm=[0,2,1,3]>(context) y = Reshape(rows, flat)",
        inputs=CACHED,
        outputs=PRESENT,
        constants="int64[4] heads = {0,0,2,8}, int64[4] four = {0,0,4,8}, int64[3] flat = {0,0,32}",
        opset=24,
    )


def test_attention_whose_products_are_wanted_is_left_alone():
    assert not fused(
        "y, present_key, present_value, products = Attention<q_num_heads=4, kv_num_heads=2>"
        "(q, k, v, , past_key, past_value)",
        inputs=CACHED,
        outputs=f"{PRESENT}, float[B,4,S,L] products",
        opset=24,
    )


def test_normalising_rows_of_two_axes_is_no_rms_norm():
    weight = "float[3,8] w"
    assert not fused("y = SimplifiedLayerNormalization<axis=1>(x, w)", inputs=f"float[2,3,8] x, {weight}")
    assert not fused("y = RMSNormalization<axis=1>(x, w)", inputs=f"float[2,3,8] x, {weight}", opset=23)
