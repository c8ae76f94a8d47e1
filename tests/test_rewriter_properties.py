"""Random graphs compute the same after rewriting."""

import random

import numpy as np
import onnx_ir as ir
import pytest
from graphs import check_sound, fusing, run
from onnx.reference import ReferenceEvaluator

from onnxfuse.dsl import any_of, op, tensor
from onnxfuse.explain import Fused


def evaluate(model, feeds):
    return ReferenceEvaluator(ir.to_proto(model)).run(None, feeds)


def _random_model(rng, size=40):
    values = [ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([3])) for name in "ab"]
    inputs, nodes = list(values), []
    for index in range(size):
        kind = rng.choice(["Neg", "Abs", "Tanh", "Add", "Mul", "Sub", "Max", "Sin"])
        arity = 1 if kind in ("Neg", "Abs", "Tanh", "Sin") else 2
        operands = [rng.choice(values[-5:]) for _ in range(arity)]
        node = ir.Node("", kind, operands, name=f"/m/l{index % 3}/{kind}_{index}")
        node.outputs[0].name = f"v{index}"
        nodes.append(node)
        values.append(node.outputs[0])
    made = [node.outputs[0] for node in nodes]
    outputs = list(dict.fromkeys([value for value in made if not value.uses()] + rng.sample(made, 3)))
    for value in outputs:
        value.type, value.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([3])
    graph = ir.Graph(inputs, outputs, nodes=nodes, opset_imports={"": 18}, name="random")
    return ir.Model(graph, ir_version=10)


def _algebra():
    """Fusions into standard operators that keep every value, with one and two outputs and overlapping matches."""

    def with_inner(x=tensor(), c=tensor()):
        h = x * c
        return op.Tanh(h), h

    def two_users(x=tensor(), a=tensor(), b=tensor()):
        h = op.Neg(x)
        return h + a, h * b

    def rewrite_two(new, m):
        h = new.onnx.Mul(m.x, np.float32(-1))
        return new.onnx.Add(m.a, h), new.onnx.Mul(m.b, h)

    def least_of_negatives(new, m):
        left, right = m.root.inputs
        return new.onnx.Neg(new.onnx.Min(new.onnx.Neg(left), new.onnx.Neg(right)))

    def rewrite_inner(new, m):
        h = new.onnx.Max(new.onnx.Mul(m.c, m.x))
        return new.onnx.Tanh(h), h

    return [
        fusing(lambda x=tensor(): op.Abs(op.Neg(x)), lambda new, m: new.onnx.Abs(m.x), "cleanup"),
        fusing(lambda x=tensor(): op.Neg(-x), lambda new, m: m.x, "cleanup"),
        fusing(lambda x=tensor(), y=tensor(): x + (-y), lambda new, m: new.onnx.Sub(m.x, m.y)),
        fusing(lambda x=tensor(), y=tensor(): op.Max(any_of(x, op.Abs(x)), op.Abs(y)), least_of_negatives, "norm"),
        fusing(with_inner, rewrite_inner, "rotary"),
        fusing(two_users, rewrite_two, "attention"),
    ]


class TestProperties:
    @pytest.mark.parametrize("seed", range(60))
    def test_rewriting_a_random_graph_keeps_every_output(self, seed):
        rng = random.Random(seed)
        model = _random_model(rng)
        generator = np.random.default_rng(seed)
        feeds = {name: generator.standard_normal(3).astype(np.float32) for name in "ab"}
        before = evaluate(model, feeds)
        nodes = rng.sample(list(model.graph), len(model.graph))
        model.graph.remove(nodes)
        model.graph.extend(nodes)
        names = [value.name for value in model.graph.outputs]
        events = run(model, *_algebra())
        check_sound(model)
        assert [value.name for value in model.graph.outputs] == names
        after = evaluate(model, feeds)
        # Reassociated products and sums of at most 40 float32 operations on numbers of size 1.
        for was, now in zip(before, after, strict=True):
            np.testing.assert_allclose(now, was, rtol=1e-5, atol=1e-6)
        assert any(isinstance(event, Fused) for event in events)
