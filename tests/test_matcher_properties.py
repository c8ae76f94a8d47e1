"""Random patterns on random graphs: no match is ever lost, and no match is ever claimed that is not there."""

from __future__ import annotations

import random
from dataclasses import dataclass

import onnx_ir as ir
import pytest
from graphs import pattern

from onnxfuse.dsl import any_of, op, tensor
from onnxfuse.facts import Facts
from onnxfuse.matcher import Search
from onnxfuse.pattern import Either, Input, Out

COMMUTATIVE = {"Add", "Mul", "Max"}
LEAVES = "abc"


@dataclass(eq=False)
class Term:
    """An expression; the same object twice is a shared value."""

    kind: str
    operands: tuple[Term, ...] = ()


def random_term(rng: random.Random, depth: int, known: list[Term]) -> Term:
    if depth == 0 or rng.random() < 0.1:
        return rng.choice(known[:3])
    if rng.random() < 0.2:
        return rng.choice(known)
    kind = rng.choice(["Add", "Mul", "Max", "Sub", "Relu"])
    arity = 1 if kind == "Relu" else 2
    made = Term(kind, tuple(random_term(rng, depth - 1, known) for _ in range(arity)))
    known.append(made)
    return made


def as_graph(rng: random.Random, root: Term) -> tuple[ir.Model, ir.Value]:
    """The term as a graph in which the operands of commutative operators stand in random order."""
    values = {}
    nodes = []

    def build(term: Term) -> ir.Value:
        if term not in values:
            if not term.operands:
                values[term] = ir.Value(name=term.kind, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([2]))
            else:
                operands = [build(operand) for operand in term.operands]
                if term.kind in COMMUTATIVE:
                    rng.shuffle(operands)
                nodes.append(ir.Node("", term.kind, operands))
                values[term] = nodes[-1].outputs[0]
        return values[term]

    output = build(root)
    inputs = [value for value in values.values() if value.producer() is None]
    graph = ir.Graph(inputs, [output], nodes=nodes, opset_imports={"": 18}, name="random")
    return ir.Model(graph, ir_version=10), output


def as_pattern(rng: random.Random, root: Term):
    """The term as a pattern in which alternatives that are wrong, or right only at first sight, stand first."""

    def build_all(a=tensor(), b=tensor(), c=tensor()):
        leaves = dict(zip(LEAVES, (a, b, c), strict=True))
        patterns = {}

        def build(term: Term):
            if term not in patterns:
                if not term.operands:
                    return leaves[term.kind]
                real = op.any(term.kind)(*(build(operand) for operand in term.operands))
                if rng.random() < 0.4:
                    decoys = [
                        op.any(term.kind)(*(rng.choice([a, b, c]) for _ in term.operands)),
                        op.any(term.kind)(*(rng.choice([*leaves.values(), *patterns.values()]) for _ in term.operands)),
                        rng.choice([a, b, c]),
                    ]
                    real = any_of(*rng.sample(decoys, rng.randint(1, 3)), real)
                patterns[term] = real
            return patterns[term]

        whole = op.Neg(build(root))
        return whole | op.Neg(op.Max(whole, a, b, c))  # so that every capture is used

    return pattern(build_all)


def holds(part, value, bound) -> bool:
    """Whether `bound` really describes the graph: the definition of a match, without any search."""
    if part in bound and bound[part] is not value:
        return False
    if isinstance(part, Input):
        return bound.get(part) is value
    if isinstance(part, Either):
        return part in bound and any(holds(alternative, value, bound) for alternative in part.alternatives)
    assert isinstance(part, Out)
    node = value.producer()
    if node is None or bound.get(part.node) is not node or ("", node.op_type) not in part.node.heads:
        return False
    operands = list(node.inputs)
    orders = [operands, operands[::-1]] if node.op_type in COMMUTATIVE else [operands]
    return any(
        len(order) == len(part.node.inputs)
        and all(holds(inner, operand, bound) for inner, operand in zip(part.node.inputs, order, strict=True))
        for order in orders
    )


@pytest.mark.parametrize("seed", range(150))
def test_a_term_is_found_in_its_own_graph_whatever_order_and_alternatives(seed):
    rng = random.Random(seed)
    term = random_term(rng, 4, [Term(name) for name in LEAVES])
    made = as_pattern(rng, term)
    model, _ = as_graph(rng, Term("Neg", (term,)))
    search = Search(made.roots, model.graph.outputs[0], Facts(model))
    bound = next(search.solutions(), None)
    assert bound is not None
    assert holds(made.roots[0], model.graph.outputs[0], bound)


@pytest.mark.parametrize("seed", range(150))
def test_every_match_in_another_graph_is_a_match_by_definition(seed):
    rng = random.Random(seed)
    made = as_pattern(rng, random_term(rng, 2, [Term(name) for name in LEAVES]))
    model, _ = as_graph(rng, Term("Neg", (random_term(rng, 4, [Term(name) for name in LEAVES]),)))
    search = Search(made.roots, model.graph.outputs[0], Facts(model))
    for bound in search.solutions():
        assert holds(made.roots[0], model.graph.outputs[0], bound)
