"""The order of nodes: found right, found wrong, and put right, in subgraphs too."""

import pytest
from graphs import check_sound, model_of, operators

from onnxfuse.normalise import normalise
from onnxfuse.order import Order, all_nodes, is_sorted

BRANCH = """
    y = If (yes) <
        then_branch = g () => (float[4] t) { t = Relu(a) },
        else_branch = g () => (float[4] e) { b = Abs(a) e = Neg(b) }
    >
"""


def model(body: str):
    return model_of(body, "float[4] x, bool yes", "float[4] y")


def test_nodes_of_subgraphs_follow_their_node():
    found = [node.op_type for node in all_nodes(model(f"a = Exp(x) {BRANCH}").graph)]
    assert found[:2] == ["Exp", "If"] and sorted(found[2:]) == ["Abs", "Neg", "Relu"]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (f"a = Exp(x) {BRANCH}", True),
        (f"{BRANCH} a = Exp(x)", False),
        ("y = Neg(a) a = Exp(x)", False),
        (f"a = Exp(x) {BRANCH.replace('b = Abs(a) e = Neg(b)', 'e = Neg(b) b = Abs(a)')}", False),
    ],
)
def test_a_graph_is_sorted_if_nothing_is_read_before_it_is_made(body, expected):
    assert is_sorted(model(body).graph) == expected


@pytest.mark.parametrize("sort", [Order, normalise])
@pytest.mark.parametrize("body", ["y = Neg(a) a = Exp(x)", f"{BRANCH} a = Exp(x)"])
def test_an_unsorted_graph_is_sorted(sort, body):
    found = model(body)
    sort(found)
    assert is_sorted(found.graph) and operators(found)[0] == "Exp"
    check_sound(found)
