"""A rewrite enters the graph only if old and new nodes compute the same on random inputs."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import onnxfuse
from onnxfuse import runtime, soundness
from onnxfuse.derived import DerivedTensor
from onnxfuse.dsl import constant, fusion, op, scalar, tensor
from onnxfuse.explain import Fused, Refused
from onnxfuse.facts import Facts
from onnxfuse.rewriter import rewrite
from onnxfuse.verify import trial
from onnxfuse.verify.feeds import visible
from onnxfuse.verify.interface import Interface
from onnxfuse.verify.match import MatchVerifier
from onnxfuse.verify.sessions import Session
from onnxfuse.verify.shrink import Shrinking
from onnxfuse.verify.slices import cut_out

NORM = """
    <ir_version: 8, opset_import: ["" : 18]>
    norm (float[B,S,64] x, float[64] w) => (float[B,S,64] y)
    <float eps={1e-5}, int64[1] axes={-1}>
    {
        square = Mul(x, x)
        mean = ReduceMean(square, axes)
        shifted = Add(mean, eps)
        root = Sqrt(shifted)
        normal = Div(x, root)
        y = Mul(normal, w)
    }
"""


def norm_model(dtype: str = "float32") -> ir.Model:
    model = ir.from_onnx_text(NORM)
    graph = model.graph
    if dtype != "float32":
        wanted = ir.DataType.from_short_name({"float16": "f16", "bfloat16": "bf16"}[dtype])
        for value in (*graph.inputs, *graph.outputs):
            value.dtype = wanted
        graph.initializers["eps"].const_value = ir.tensor(np.array(1e-5, wanted.numpy()), name="eps")
    return model


def norm_fusion(rewriting, tolerance=None):
    """RMSNorm with the given rewrite."""

    @fusion(stage="norm", tolerance=tolerance)
    def norm(x=tensor("... D"), weight=tensor("D"), eps=scalar()):
        rms = op.Sqrt(op.ReduceMean(x * x, axes=[-1], keepdims=1) + eps)
        return x / rms * weight

    norm.rewrite(rewriting)
    return norm


def library():
    try:
        return runtime.library_path()
    except FileNotFoundError:
        return None


def outcome(model: ir.Model | str, fusion_, *, with_library: bool = False) -> tuple[list, MatchVerifier]:
    """The events of rewriting a model, and the verifier that watched."""
    model = ir.from_onnx_text(model) if isinstance(model, str) else model
    facts = Facts(model)
    verifier = MatchVerifier(facts, library=library() if with_library else None)
    return rewrite(model, facts, [fusion_], verify=verifier, body=soundness.bodies(facts), explain=False), verifier


def right(new, m):
    return new.RMSNorm(m.x, m.weight, epsilon=m.eps)


def without_weight(new, m):
    return new.RMSNorm(m.x, np.ones(64, np.float32), epsilon=m.eps)


def other_epsilon(new, m):
    return new.RMSNorm(m.x, m.weight, epsilon=m.eps / 2)


def squared_norm(new, m):
    normal = new.RMSNorm(m.x, m.weight, epsilon=m.eps)
    return new.onnx.Mul(normal, normal)


def one_axis_less(new, m):
    return new.onnx.ReduceMean(new.RMSNorm(m.x, m.weight, epsilon=m.eps), np.array([-1]), keepdims=0)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("with_library", [False, True])
def test_a_right_rewrite_is_accepted(dtype, with_library):
    if with_library and library() is None:
        pytest.skip("the operator library was not built")
    events, verifier = outcome(norm_model(dtype), norm_fusion(right), with_library=with_library)
    assert [type(event) for event in events] == [Fused]
    (verdict,) = verifier.verdicts.values()
    assert verdict.points >= 3 and verdict.max_rel < (1e-6 if dtype == "float32" else 1e-2)


@pytest.mark.parametrize(("tolerance", "sessions"), [(1e-2, 2), (0.0, 3)])
def test_the_old_graph_runs_as_it_is_where_its_own_error_matters(monkeypatch, tolerance, sessions):
    opened = []

    def open_session(model, **options):
        opened.append(model)
        return Session(model, **options)

    monkeypatch.setattr(trial, "Session", open_session)
    events, _ = outcome(norm_model("float16"), norm_fusion(right, {"float16": tolerance}))
    assert [type(event) for event in events] == [Fused]
    assert len(opened) == sessions  # in float32 and rewritten; if these two differ by more, in float16 too


@pytest.mark.parametrize(
    "written, repeated, size",
    [("Identity(b)", lambda new, t: t, 4), ("Concat<axis=2>(b, b)", lambda new, t: new.onnx.Concat(t, t, axis=2), 8)],
    ids=["once", "twice"],
)
def test_what_the_rewrite_reads_before_it_is_moved_stays_one_with_what_was_captured(written, repeated, size):
    @fusion(stage="elementwise")
    def shifted(x=tensor(), shift=tensor()):
        return op.Relu(x + shift)

    def read_before(new, m):
        source = next(node.outputs[0] for node in m.facts.model.graph if node.op_type == "Tanh")
        moved = new.onnx.Unsqueeze(repeated(new, source), np.array([1]))
        return new.onnx.Max(new.onnx.Add(m.x, moved), np.array(0, np.float32))

    shifted.rewrite(read_before)
    events, _ = outcome(
        f"""
        <ir_version: 8, opset_import: ["" : 18]>
        agraph (float[B,1,S,{size}] x, float[B,S,4] t) => (float[B,1,S,{size}] y) <int64[1] one={{1}}>
        {{
            a = Exp(x)
            b = Tanh(t)
            c = {written}
            shift = Unsqueeze(c, one)
            sum = Add(a, shift)
            y = Relu(sum)
        }}
        """,
        shifted,
    )
    assert [type(event) for event in events] == [Fused]


def test_a_slice_takes_the_functions_that_it_calls():
    model = ir.from_onnx_text("""
        <ir_version: 10, opset_import: ["" : 18, "own" : 1]>
        agraph (float[4] x) => (float[4] y) { y = own.Outer(x) }
        <opset_import: ["" : 18, "own" : 1], domain: "own"> Outer (a) => (b) { b = own.Inner(a) }
        <opset_import: ["" : 18], domain: "own"> Inner (a) => (b) { b = Neg(a) }
        <opset_import: ["" : 18], domain: "own"> Other (a) => (b) { b = Abs(a) }
    """)
    piece = cut_out(model.graph.outputs, lambda value: False, Facts(model)).model(model.functions.values())
    assert {name for _, name, _ in piece.functions} == {"Outer", "Inner"}


@pytest.mark.parametrize("rewriting", [without_weight, other_epsilon, squared_norm, one_axis_less])
def test_a_wrong_rewrite_is_refused_and_says_by_how_much(rewriting):
    events, _ = outcome(norm_model(), norm_fusion(rewriting))
    (event,) = events
    assert isinstance(event, Refused)
    assert event.reason.startswith("'y' differs") and "as function bodies" in event.reason


GATED = """
    <ir_version: 10, opset_import: ["" : 18]>
    mlp (bfloat16[B,S,32] x) => (bfloat16[B,S,32] y)
    {
        gate = MatMul(x, a)
        up = MatMul(x, b)
        weight = Sigmoid(gate)
        active = Mul(gate, weight)
        inner = Mul(active, up)
        y = MatMul(inner, c)
    }
"""


def test_bfloat16_operators_that_were_fused_before_are_verified_in_float32():
    """ONNX Runtime has no bfloat16 MatMul on the CPU: the old graph, a SwiGLU in it, is computed in float32."""
    model = onnx.parser.parse_model(GATED)
    for name, shape in (("a", (32, 64)), ("b", (32, 64)), ("c", (64, 32))):
        weight = np.random.default_rng(0).standard_normal(shape).astype(ir.DataType.BFLOAT16.numpy())
        model.graph.initializer.append(onnx.numpy_helper.from_array(weight, name))
    result = onnxfuse.optimize(model, verify="match")
    assert [node.op_type for node in result.model.graph] == ["GatedMLP"]


def twice_negated(new, m):
    return new.onnx.Neg(new.onnx.Neg(right(new, m)))


@pytest.mark.parametrize("with_library", [False, True])
def test_bfloat16_around_a_new_operator_is_computed_in_float32_where_onnxruntime_cannot(with_library):
    """It has no bfloat16 Neg and no bfloat16 Mul on the CPU."""
    events, _ = outcome(norm_model("bfloat16"), norm_fusion(twice_negated), with_library=with_library)
    assert [type(event) for event in events] == [Fused]
    (event,), _ = outcome(norm_model("bfloat16"), norm_fusion(squared_norm), with_library=with_library)
    assert isinstance(event, Refused) and "differs by" in event.reason


def test_another_dtype_is_refused():
    def narrowed(new, m):
        return new.onnx.Cast(new.RMSNorm(m.x, m.weight, epsilon=m.eps), to="float16")

    (event,) = outcome(norm_model(), norm_fusion(narrowed, {"float32": 1e-2}))[0]
    assert isinstance(event, Refused) and "'y' was float32 and becomes float16" in event.reason


def test_a_small_error_is_caught_in_half_precision_too():
    events, _ = outcome(norm_model("float16"), norm_fusion(without_weight))
    assert isinstance(events[0], Refused)


def test_the_stated_tolerance_counts():
    def slightly_off(new, m):
        return new.onnx.Mul(new.RMSNorm(m.x, m.weight, epsilon=m.eps), np.float32(1.001))

    assert isinstance(outcome(norm_model(), norm_fusion(slightly_off))[0][0], Refused)
    assert isinstance(outcome(norm_model(), norm_fusion(slightly_off, {"float32": 2e-3}))[0][0], Fused)


def test_equal_structures_are_tried_once():
    layers = """
        <ir_version: 8, opset_import: ["" : 18]>
        two (float[B,S,64] x, float[64] w, float[64] v) => (float[B,S,64] y)
        <float eps={1e-5}, float other={1e-3}, int64[1] axes={-1}>
        {
            s1 = Mul(x, x)   m1 = ReduceMean(s1, axes)   a1 = Add(m1, eps)   r1 = Sqrt(a1)
            d1 = Div(x, r1)   y1 = Mul(d1, w)
            s2 = Mul(y1, y1)   m2 = ReduceMean(s2, axes)   a2 = Add(m2, LAST)   r2 = Sqrt(a2)
            d2 = Div(y1, r2)   y = Mul(d2, v)
        }
    """
    events, verifier = outcome(layers.replace("LAST", "eps"), norm_fusion(right))
    assert len(events) == 2 and len(verifier.verdicts) == 1
    events, verifier = outcome(layers.replace("LAST", "other"), norm_fusion(right))
    assert len(events) == 2 and len(verifier.verdicts) == 2  # another epsilon is another function


MASKED = """
    <ir_version: 8, opset_import: ["" : 18]>
    masked (float[B,S,8] hidden, int64[B,S] attention_mask) => (float[B,S,S] y)
    <int64[2] axes={1}, float one={1}, float low={-10000}, int64[1] last={1}>
    {
        seen = Cast<to=1>(attention_mask)
        absent = Sub(one, seen)
        penalty = Mul(absent, low)
        row = Unsqueeze(penalty, last)
        turned = Transpose<perm=[0,2,1]>(hidden)
        scores = MatMul(hidden, turned)
        masked = Add(scores, row)
        y = Softmax<axis=-1>(masked)
    }
"""


def masked_fusion(rewriting):
    @fusion(stage="attention")
    def masked(scores=tensor("B S L"), penalty=tensor()):
        return op.Softmax(scores + op.Unsqueeze(penalty, axes=[1]), axis=-1)

    masked.rewrite(rewriting)
    return masked


def test_masks_are_run_from_the_inputs_that_they_are_made_of():
    """Only a real 0/1 mask keeps `penalty > -1` and `the mask is 1` apart from arbitrary numbers."""

    def by_comparison(new, m):
        hidden = new.onnx.Less(new.onnx.Unsqueeze(m.penalty, np.array([1])), np.float32(-1))
        return new.onnx.Softmax(new.onnx.Where(hidden, np.float32(-1e4), m.scores), axis=-1)

    def unmasked(new, m):
        return new.onnx.Softmax(m.scores, axis=-1)

    assert isinstance(outcome(MASKED, masked_fusion(by_comparison))[0][0], Fused)
    assert isinstance(outcome(MASKED, masked_fusion(unmasked))[0][0], Refused)


FIXED = """
    <ir_version: 8, opset_import: ["" : 18]>
    fixed (int64[2,5] input_ids, int64[2,11] attention_mask, float[2,1,6,8] past_key) => (int64[2,5] y)
    { y = Identity(input_ids) }
"""


def test_padding_stands_just_before_a_token_of_some_prompt():
    """Attention with a window of two sees no farther: nothing else shows that its padding mask was lost."""
    tokens = [visible(point)[:, point.past :] for point in trial.POINTS]
    assert any((~seen[:, :-1] & seen[:, 1:]).any() for seen in tokens)
    fixed = Interface.of(ir.from_onnx_text(FIXED))
    settled = {fixed.settle(point) for point in trial.POINTS}
    assert any((~seen[:, :-1] & seen[:, 1:]).any() for seen in (visible(p)[:, p.past :] for p in settled))


def test_a_difference_in_rows_of_padding_tokens_is_no_difference():
    def zero_where_padded(new, m):
        padded = new.onnx.Unsqueeze(new.onnx.Less(m.penalty, np.float32(-1)), np.array([2]))
        row = new.onnx.Unsqueeze(m.penalty, np.array([1]))
        weights = new.onnx.Exp(new.onnx.LogSoftmax(new.onnx.Add(m.scores, row), axis=-1))
        return new.onnx.Where(padded, np.float32(0), weights)

    def zero_where_visible(new, m):
        visible = new.onnx.Unsqueeze(new.onnx.Greater(m.penalty, np.float32(-1)), np.array([2]))
        row = new.onnx.Unsqueeze(m.penalty, np.array([1]))
        weights = new.onnx.Exp(new.onnx.LogSoftmax(new.onnx.Add(m.scores, row), axis=-1))
        return new.onnx.Where(visible, np.float32(0), weights)

    assert isinstance(outcome(MASKED, masked_fusion(zero_where_padded))[0][0], Fused)
    assert isinstance(outcome(MASKED, masked_fusion(zero_where_visible))[0][0], Refused)


PRODUCT = """
    <ir_version: 8, opset_import: ["" : 18]>
    product (float[B,S,1024] x, float[1024,2048] up) => (float[B,S,2048] y)
    <int64[1] axes={-1}>
    {
        h = MatMul(x, up)
        y = Relu(h)
    }
"""


def with_weight(text: str, shape: tuple[int, int]) -> ir.Model:
    """The model with its input `up` as an initializer that must not be read."""

    def read() -> ir.TensorProtocol:
        raise AssertionError("the verifier read a weight")

    model = ir.from_onnx_text(text)
    up = model.graph.inputs.pop()
    up.const_value = ir.LazyTensor(read, dtype=ir.DataType.FLOAT, shape=ir.Shape(shape), name="up")
    model.graph.initializers.add(up)
    return model


def product_fusion(rewriting):
    @fusion(stage="mlp")
    def product(x=tensor("... H"), up=constant("H I")):
        return op.Relu(x @ up)

    product.rewrite(rewriting)
    return product


def turn(weight: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(weight.T)


def turned_product(new, m, function=turn):
    shape = m.up.shape[::-1]
    turned = new.constant(DerivedTensor(m.up.value, function, shape, "turned"))
    return new.onnx.Relu(new.onnx.MatMul(m.x, new.onnx.Transpose(turned, perm=[1, 0])))


@pytest.mark.parametrize("columns", [2048, 2047])
def test_weights_are_drawn_and_never_read(columns):
    model = with_weight(PRODUCT.replace("2048", str(columns)), (1024, columns))
    facts = Facts(model)
    events = rewrite(model, facts, [product_fusion(turned_product)], verify=MatchVerifier(facts), explain=False)
    assert [type(event) for event in events] == [Fused]


def test_a_wrong_layout_of_a_derived_weight_is_refused():
    def reversed_rows(new, m):
        return turned_product(new, m, lambda weight: turn(weight)[::-1])

    model = with_weight(PRODUCT, (1024, 2048))
    facts = Facts(model)
    events = rewrite(model, facts, [product_fusion(reversed_rows)], verify=MatchVerifier(facts), explain=False)
    assert isinstance(events[0], Refused) and "differs" in events[0].reason


def test_large_weights_are_shrunk_unless_a_number_in_the_graph_speaks_of_their_size():
    def shrinking(text: str, shape: tuple[int, int]) -> Shrinking:
        facts = Facts(with_weight(text, shape))
        outputs = tuple(facts.model.graph.outputs)
        piece = cut_out(outputs, lambda value: value.name in ("x", "up"), facts)
        return Shrinking.of(piece, piece, [])

    found = shrinking(PRODUCT, (1024, 2048))
    assert (found.size(1024), found.size(2048), found.size(7)) == (32, 64, 7)
    fixed = PRODUCT.replace("int64[1] axes={-1}", "int64[2] axes={-1, 512}").replace("Relu(h)", "Reshape(h, axes)")
    assert shrinking(fixed, (1024, 2048)).factor == 1
    assert shrinking(PRODUCT.replace("1024", "32").replace("2048", "32"), (32, 32)).factor == 1


def test_a_size_that_only_a_matrix_product_tells_is_found():
    model = ir.from_onnx_text("""
        <ir_version: 8, opset_import: ["" : 18]>
        expert (float[B,S,16] x, int64[2] shape, float[16,8] w) => (float[R,8] y)
        {
            rows = Reshape(x, shape)
            double = Add(rows, rows)
            y = MatMul(double, w)
        }
    """)

    @fusion(stage="norm")
    def doubled(x=tensor(), weight=tensor()):
        return op.MatMul(x + x, weight)

    doubled.rewrite(lambda new, m: new.onnx.MatMul(new.onnx.Mul(m.x, np.float32(2)), m.weight))
    facts = Facts(model)
    (event,) = rewrite(model, facts, [doubled], verify=MatchVerifier(facts, library=None))
    assert isinstance(event, Fused), event


def test_what_cannot_be_run_is_not_rewritten():
    @fusion(stage="cleanup")
    def relu(x=tensor()):
        return op.Relu(x)

    @relu.rewrite
    def maximum(new, m):
        return new.onnx.Max(m.x, np.float32(0))

    text = '<ir_version: 8, opset_import: ["" : 18]> g (float x) => (float y) { h = Neg(x) y = Relu(h) }'
    known = text.replace("float x", "float[N] x")
    assert isinstance(outcome(known, relu)[0][0], Fused)
    model = ir.from_onnx_text(text)
    model.graph.inputs[0].shape = None
    (event,) = outcome(model, relu)[0]
    assert isinstance(event, Refused) and event.reason.startswith("cannot be verified")
