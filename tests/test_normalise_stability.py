"""Normalising what was normalised and tidied changes nothing, and what survives keeps its name."""

import onnx_ir as ir
import pytest
from graphs import check_sound, model_of, operators

import onnxfuse
from onnxfuse.normalise import normalise, tidy


def tidied(model: ir.Model) -> str:
    """The nodes with their names after a rewrite that finds nothing to fuse."""
    tidy(model, normalise(model))
    check_sound(model)
    return "\n".join(str(node) for node in model.graph)


def tidied_twice(model: ir.Model) -> ir.Model:
    """`model`, tidied, after making sure that a second time changes nothing."""
    once = tidied(model)
    assert tidied(ir.from_proto(ir.to_proto(model))) == once
    return model


def test_keys_that_are_turned_in_one_step_keep_their_name():
    model = model_of("y = Transpose<perm = [0, 2, 3, 1]>(x)", "float[2,3,4,8] x", "float[2,4,8,3] y")
    (node,) = tidied_twice(model).graph
    assert node.name == "make_y" and list(node.attributes["perm"].value) == [0, 2, 3, 1]


def test_transposes_in_a_row_are_the_last_one():
    body = "a = Transpose<perm = [1, 0, 2]>(x) b = Transpose<perm = [2, 0, 1]>(a) y = Relu(b)"
    model = tidied_twice(model_of(body, "float[2,3,8] x", "float[8,3,2] y"))
    assert [node.name for node in model.graph] == ["make_b", "make_y"]
    assert list(model.graph[0].attributes["perm"].value) == [2, 1, 0]


def test_what_a_branch_that_is_never_taken_read_goes_with_it():
    model = model_of(
        """
        rank = Size(sizes) yes = Equal(rank, two) a = Neg(x)
        y = If (yes) <
            then_branch = g () => (float[2,8] t) { t = Relu(x) },
            else_branch = g () => (float[2,8] e) { e = Abs(a) }
        >
        """,
        "float[2,8] x",
        "float[2,8] y",
        "int64[2] sizes = {2, 8}, int64 two = {2}",
    )
    assert operators(tidied_twice(model)) == ["Relu"]


@pytest.mark.parametrize("body", ["y = Neg(x) z = Neg(x)", "w = Neg(x) y = Identity(w) z = Identity(w)"])
def test_equal_outputs_stay_two(body):
    outputs = "float[4] y, float[4] z"
    outputs += ", float[4] w" if "w" in body else ""
    model = model_of(body, "float[4] x", outputs)
    before = operators(model)
    assert operators(tidied_twice(model)) == before


def test_equal_nodes_become_the_first():
    body = """
        shape = Shape(x)
        a = ConstantOfShape <value = float[1] {3}> (shape) b = ConstantOfShape <value = float[1] {3}> (shape)
        c = ConstantOfShape <value = float[1] {4}> (shape)
        n = RandomNormalLike(a) m = RandomNormalLike(b)
        i = Add(n, m) y = Add(i, c)
    """
    model = tidied_twice(model_of(body, "float[N,2] x", "float[N,2] y"))
    assert operators(model) == ["Shape", *["ConstantOfShape"] * 2, *["RandomNormalLike"] * 2, "Add", "Add"]


def test_equal_tables_become_one():
    rows = ", ".join(map(str, range(3000)))
    other = ", ".join(map(str, range(1, 3001)))
    body = "p = Gather(a, x) q = Gather(b, x) r = Gather(c, x) s = Add(p, q) y = Add(s, r)"
    tables = f"float[1000,3] a = {{{rows}}}, float[1000,3] b = {{{rows}}}, float[1000,3] c = {{{other}}}"
    model = tidied_twice(model_of(body, "int64[4] x", "float[4,3] y", tables))
    assert operators(model) == ["Gather", "Gather", "Add", "Add"]
    assert model.graph[2].inputs[0] is model.graph[2].inputs[1]


@pytest.mark.parametrize("level", ["op", "block"])
def test_a_graph_that_nothing_is_fused_in_does_not_keep_the_form_for_matching(level):
    """Patterns expect the transpose of keys in two steps."""
    model = model_of("y = Transpose<perm=[0,2,3,1]>(x)", "float[B,S,2,4] x", "float[B,2,4,S] y")
    assert operators(onnxfuse.optimize(model, fusions=[], level=level).model) == ["Transpose"]
