"""The driver: what is replaced, what stays, in which order, under which names."""

import onnx_ir as ir
import pytest

from onnxfuse.dsl import Refuse, fusion, maybe, op, scalar, tensor
from onnxfuse.facts import Facts
from onnxfuse.rewriter import RewriteLoop, rewrite


def make_rms_norm():
    @fusion(stage="norm", op="RMSNorm")
    def rms_norm(x=tensor("... D"), weight=tensor("D"), eps=scalar()):
        """RMSNorm: y = x / sqrt(mean(x^2) + eps) * weight."""
        h = maybe.Cast(x, to="float32")
        mean_square = op.ReduceMean(h**2 | h * h, axes=[-1], keepdims=1)
        rms = op.Sqrt(mean_square + eps)
        return maybe.Cast(h / rms | h * (1 / rms)) * weight

    @rms_norm.rewrite
    def fused(new, m):
        return new.RMSNorm(m.x, m.weight, epsilon=m.eps)

    return rms_norm


RMS_NORM = """
    <ir_version: 8, opset_import: ["" : 18]>
    agraph (float[B,S,64] x, float[64] w) => (float[B,S,64] y)
    <float two={2.0}, float eps={1e-5}, int64[1] axes={-1}, float one={1.0}>
    {
        square = Pow(x, two)
        mean = ReduceMean(square, axes)
        shifted = Add(mean, eps)
        root = Sqrt(shifted)
        inverse = Div(one, root)
        normal = Mul(x, inverse)
        y = Mul(w, normal)
    }
"""


def run(text, *fusions, **options):
    model = ir.from_onnx_text(text)
    events = rewrite(model, Facts(model), fusions, **options)
    return model, events


def operators(model):
    return [node.op_type for node in model.graph]


def test_a_match_is_replaced_and_keeps_the_output_name():
    model, events = run(RMS_NORM, make_rms_norm())
    assert operators(model) == ["RMSNorm"]
    assert model.graph.outputs[0].name == "y"
    assert [event.to_dict()["outcome"] for event in events] == ["fused"]


def test_a_failing_verification_leaves_the_graph_untouched():
    before = ir.from_onnx_text(RMS_NORM)
    model, events = run(RMS_NORM, make_rms_norm(), verify=lambda candidate: "differs by 0.1")
    assert ir.to_proto(model).SerializeToString() == ir.to_proto(before).SerializeToString()
    assert all(len(value.uses()) == 1 for node in model.graph for value in node.inputs if value.name != "x")
    assert [event.reason for event in events] == ["differs by 0.1"]


def test_a_rewrite_may_refuse():
    norm = make_rms_norm()

    @norm.rewrite
    def fused(new, m):
        new.RMSNorm(m.x, m.weight)
        raise Refuse(f"no kernel for {m.x.shape[-1]} elements")

    model, events = run(RMS_NORM, norm)
    assert "RMSNorm" not in operators(model)
    assert [event.reason for event in events] == ["no kernel for 64 elements"]


def test_fusions_that_undo_each_other_are_named():
    @fusion(stage="cleanup")
    def there(x=tensor()):
        return op.Neg(x)

    @there.rewrite
    def to_abs(new, m):
        return new.onnx.Abs(m.x)

    @fusion(stage="cleanup")
    def back(x=tensor()):
        return op.Abs(x)

    @back.rewrite
    def to_neg(new, m):
        return new.onnx.Neg(m.x)

    with pytest.raises(RewriteLoop, match="back and there undo each other"):
        run(
            "<ir_version: 8, opset_import: ['' : 18]> g (float[2] x) => (float[2] y) { y = Neg(x) }".replace("'", '"'),
            there,
            back,
        )
