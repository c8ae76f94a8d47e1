"""The pattern language: what it refuses to mean, and that every pattern knows where it was written."""

import inspect

import onnx
import pytest
from graphs import count, matches, model_of

from onnxfuse import operators
from onnxfuse.dsl import any_of, attr, constant, fusion, maybe, one_of, op, scalar, tensor
from onnxfuse.pattern import Const, Either, PatternError, walk


def made_of(function, **options):
    return fusion(stage="cleanup", **options)(function)


def test_a_fusion_knows_its_name_documentation_captures_and_size():
    @fusion(stage="elementwise", op="SwiGLU", tolerance={"float32": 1e-6})
    def swiglu(gate=tensor("... D"), up=tensor("... D")):
        """SwiGLU: y = gate * sigmoid(gate) * up."""
        return gate * op.Sigmoid(gate) * up

    assert swiglu.name == "swiglu"
    assert swiglu.documentation == "SwiGLU: y = gate * sigmoid(gate) * up."
    assert set(swiglu.captures) == {"gate", "up"}
    assert swiglu.size == 3
    assert swiglu.tolerance == {"float32": 1e-6}


def test_every_pattern_points_at_the_line_that_wrote_it():
    def pattern(x=tensor()):
        h = op.Relu(x)
        return h * 2 | -h

    first = inspect.getsourcelines(pattern)[1]
    made = made_of(pattern)
    either = made.roots[0]
    assert isinstance(either, Either)
    assert [part.location.line - first for part in (either, *either.alternatives)] == [2, 2, 2]
    assert either.alternatives[1].node.inputs[0].location.line - first == 1
    assert made.captures["x"].location.line == first
    assert either.location.text == "return h * 2 | -h"
    assert all(part.location.file == __file__ for part in walk(*made.roots))
    assert [part.number for part in walk(*made.roots) if isinstance(part, Const)] == [2]


def test_size_counts_the_smallest_subgraph():
    assert made_of(lambda x=tensor(): op.Neg(maybe.Cast(op.Abs(x)) | op.Relu(x))).size == 2


def test_a_shared_part_counts_once():
    def pattern(x=tensor()):
        h = op.Abs(x)
        return h * op.Exp(h)

    assert made_of(pattern).size == 3


def test_an_operator_that_this_onnx_is_too_old_for_never_matches(monkeypatch):
    monkeypatch.setattr(operators, "NEWEST_OPSET", onnx.defs.onnx_opset_version() + 1)
    assert count(lambda x=tensor(): op.Newer(x), "y = Newer (x)") == 0
    either = made_of(lambda x=tensor(): op.Neg(op.Newer(x, axis=1, attributes=...) | op.Relu(x)))
    for body, found in (("h = Relu (x)", 1), ("h = Newer <axis=1> (x)", 0)):
        assert len(matches(either, model_of(f"{body} y = Neg (h)"))) == found
    assert either.size == 2


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda x=tensor(): op.Reluu(x), "ONNX has no operator Reluu"),
        (lambda x=tensor(): op.Softmax(x, axes=-1), "Softmax has no parameter axes; did you mean axis"),
        (lambda x=tensor(): op.Relu(x, x), "Relu takes at most 1 inputs, found 2"),
        (lambda x=tensor(): op.Concat(x, x), "Concat needs axis=...; write axis=attr"),
        (lambda x=tensor(): op.Reshape(x, [1], shape=[1]), "Reshape is given shape twice"),
        (lambda x=tensor(): op.Relu("x"), "'x' is neither a pattern nor a number"),
        (lambda x=tensor(): x, "returns a value that no operator need produce"),
        (lambda x=tensor(): op.Relu(x) | x, "returns a value that no operator need produce"),
        (lambda x=tensor(), y=tensor(): (op.Relu(x), op.Neg(y)), "output 1 of .* shares nothing with those before it"),
        (lambda x=tensor(), y=tensor(): op.Relu(x), "never uses its parameter y"),
        (lambda x=1: op.Relu(x), "parameter x must default to"),
        (lambda x=tensor(): op.Relu(x if x else 1), "a pattern has no truth value"),
        (lambda x=tensor(): one_of("way", only=op.Relu(x)), "needs two or more alternatives"),
        (lambda x=tensor("D"): op.Softmax(x, axis=attr("D")), "'D' is .* and .* at once"),
        (lambda x=tensor(): op.Softmax(x, axis=attr("x")), "'x' is an attribute and a capture at once"),
        (lambda x=tensor(): op.Softmax(x, axis=attr("nodes")), "'nodes' is an attribute and a word of every match"),
        (lambda nodes=tensor(): op.Relu(nodes), "'nodes' is a capture and a word of every match"),
        (lambda x=tensor(): any_of(), "needs an alternative"),
    ],
)
def test_a_pattern_that_cannot_be_meant_is_refused_where_it_is_written(monkeypatch, build, message):
    monkeypatch.setattr(operators, "NEWEST_OPSET", 0)  # this onnx knows all there is
    with pytest.raises(PatternError, match=message) as caught:
        made_of(build)
    assert "test_dsl.py:" in str(caught.value)


@pytest.mark.parametrize("dims", ["B S-1", "B ... D", "B|2", "|1", "2x"])
def test_dimensions_that_mean_nothing_are_refused(dims):
    with pytest.raises(PatternError, match="is no dimension"):
        tensor(dims)


def test_an_unknown_stage_is_refused():
    with pytest.raises(PatternError, match="names stage 'normal'; stages are cleanup, elementwise"):
        fusion(stage="normal")(lambda x=tensor(): op.Relu(x))


def test_an_unknown_dtype_name_is_refused():
    with pytest.raises(PatternError, match="unknown dtype 'f32'"):
        made_of(lambda x=tensor(): op.Cast(x, to="f32"))


def test_operators_of_other_domains_are_taken_as_they_are_written():
    made = made_of(lambda x=tensor(): op.ns("com.microsoft").QuickGelu(x, alpha=1.0))
    assert made.heads == {("com.microsoft", "QuickGelu")}


def test_a_parameter_without_default_is_any_value():
    assert made_of(lambda x, c=constant(), s=scalar(): op.Relu(x) * c * s).captures["x"].dims is None


def test_a_default_shared_by_two_parameters_gives_two_captures():
    any_tensor = tensor()
    assert set(made_of(lambda x=any_tensor, y=any_tensor: x + y).captures) == {"x", "y"}


def test_a_fusion_names_the_roots_it_can_have_among_the_operators_of_a_graph():
    def pattern(x=tensor(), y=tensor()):
        return op.Sqrt(x * y) | op.Exp(op.Softmax(x, axis=-1)) | op.Neg(x)

    made = made_of(pattern)
    every = {("", name) for name in ("Sqrt", "Mul", "Exp", "Softmax", "Neg", "Add")}
    assert made.heads_among(every) == made.heads
    assert made.heads_among(every - {("", "Softmax")}) == {("", "Sqrt"), ("", "Neg")}
    assert made.heads_among({("", "Sqrt"), ("", "Exp"), ("", "Add")}) == set()


def test_a_fusion_one_of_whose_outputs_can_not_be_there_has_no_root():
    def pattern(x=tensor()):
        h = op.Relu(x)
        return op.Neg(h), op.Abs(h)

    made = made_of(pattern)
    assert made.heads_among({("", "Relu"), ("", "Neg")}) == set()
    assert made.heads_among({("", "Relu"), ("", "Neg"), ("", "Abs")}) == {("", "Neg")}
