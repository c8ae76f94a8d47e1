"""Matching costs steps in proportion to the graph, and gives up where a pattern is hopelessly ambiguous."""

import random

import onnx_ir as ir
import pytest
from graphs import model_of, pattern

from onnxfuse.dsl import any_of, maybe, op, scalar, tensor
from onnxfuse.facts import Facts
from onnxfuse.matcher import Search, StepLimitReached


class TestEffort:
    def test_a_step_limit_ends_a_hopeless_search(self):
        def hopeless(a=tensor(), b=tensor(), last=tensor().where(lambda value, facts: False)):
            return op.Concat(*(a | b | a for _ in range(16)), last, axis=0)

        model = model_of(f"y = Concat<axis=0>({'x, ' * 16} x)", outputs="float[34,3,8] y")
        with pytest.raises(StepLimitReached, match="gave up after 5000 steps"):
            list(pattern(hopeless).matches(model.graph[0].outputs[0], Facts(model), limit=5000))

    def test_failing_costs_little_on_a_long_chain(self):
        """2,000 nodes, every pattern at every node: steps grow with the nodes, not with what lies above them."""
        made = [pattern(function) for function in (_rms_norm, _gelu, _attention)]
        per_node = {}
        for length in (500, 2000):
            model = _random_chain(length)
            facts = Facts(model)
            steps = 0
            for node in model.graph:
                for one in made:
                    search = Search(one.roots, node.outputs[0], facts)
                    list(search.solutions())
                    steps += search.steps
            per_node[length] = steps / length
        assert per_node[2000] < 1.1 * per_node[500]
        assert per_node[2000] < 40


def _rms_norm(x=tensor("... D"), weight=tensor("D"), eps=scalar()):
    h = maybe.Cast(x, to="float32")
    mean_square = op.ReduceMean(h**2 | h * h, axes=[-1], keepdims=1)
    rms = op.Sqrt(mean_square + eps)
    return maybe.Cast(h / rms | h * op.Reciprocal(rms) | h * (1 / rms)) * weight


def _gelu(z=tensor()):
    cube = any_of(z**3, z * z * z, z * (z * z))
    inner = (z + cube * 0.044715) * 0.7978845608
    cdf = 1 + op.Tanh(inner)
    return any_of(z * 0.5 * cdf, z * cdf * 0.5, z * (cdf * 0.5), 0.5 * (z * cdf))


def _attention(q=tensor(), k=tensor(), v=tensor(), mask=tensor(), scale=scalar()):
    turned = op.Transpose(k, perm=[0, 1, 3, 2])
    raw = any_of(op.MatMul(q, turned) * scale, op.MatMul(q, turned) / scale, op.MatMul(q * scale, turned))
    return op.MatMul(maybe.Cast(op.Softmax(raw + mask | raw, axis=-1)), v)


def _random_chain(length):
    rng = random.Random(7)
    x = ir.Value(name="x", shape=ir.Shape([2, 8, 8]), type=ir.TensorType(ir.DataType.FLOAT))
    values, nodes = [x], []
    for _ in range(length):
        kind = rng.choice(["Add", "Mul", "Mul", "Mul", "Tanh", "Sqrt", "MatMul", "Softmax", "Pow"])
        arity = 1 if kind in ("Tanh", "Sqrt", "Softmax") else 2
        inputs = [values[-1], *rng.choices(values[-3:], k=arity - 1)]
        rng.shuffle(inputs)
        node = ir.Node("", kind, inputs)
        nodes.append(node)
        values.append(node.outputs[0])
    graph = ir.Graph([x], [values[-1]], nodes=nodes, opset_imports={"": 18}, name="chain")
    return ir.Model(graph, ir_version=8)
