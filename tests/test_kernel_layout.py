"""Weights that the rewriter stores in the kernels' order: the same function, with the library and without it."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxfuse

HIDDEN, INNER = 64, 96


def gated_mlp_model(*, gate_is_read_elsewhere: bool = False) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    shapes = {"gate": (HIDDEN, INNER), "up": (HIDDEN, INNER), "down": (INNER, HIDDEN)}
    weights = {n: (rng.standard_normal(s) / np.sqrt(s[0])).astype(np.float32) for n, s in shapes.items()}
    nodes = [
        helper.make_node("MatMul", ["x", "gate"], ["g"]),
        helper.make_node("Sigmoid", ["g"], ["s"]),
        helper.make_node("Mul", ["g", "s"], ["a"]),
        helper.make_node("MatMul", ["x", "up"], ["u"]),
        helper.make_node("Mul", ["a", "u"], ["p"]),
        helper.make_node("MatMul", ["p", "down"], ["y"]),
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["B", "S", HIDDEN])]
    if gate_is_read_elsewhere:
        nodes.append(helper.make_node("Gather", ["gate", "row"], ["other"], axis=0))
        outputs.append(helper.make_tensor_value_info("other", TensorProto.FLOAT, [INNER]))
    graph = helper.make_graph(
        nodes,
        "mlp",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", "S", HIDDEN])]
        + ([helper.make_tensor_value_info("row", TensorProto.INT64, [])] if gate_is_read_elsewhere else []),
        outputs,
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def fused_node(model: ir.Model) -> ir.Node:
    return next(node for node in model.graph if node.op_type == "GatedMLP")


def ranks(node: ir.Node) -> list[int]:
    return [len(value.shape) for value in node.inputs[1:4]]


def test_weights_of_a_fused_node_are_packed_for_the_cpu():
    assert ranks(fused_node(onnxfuse.optimize(gated_mlp_model()).model)) == [3, 3, 3]


def test_cuda_kernels_read_weights_as_onnx_has_them():
    assert ranks(fused_node(onnxfuse.optimize(gated_mlp_model(), target="cuda").model)) == [2, 2, 2]


def test_a_weight_that_something_else_reads_is_not_stored_twice():
    model = onnxfuse.optimize(gated_mlp_model(gate_is_read_elsewhere=True)).model
    assert ranks(fused_node(model)) == [2, 3, 3]
    assert sum(value.const_value.size for value in model.graph.initializers.values()) == 3 * HIDDEN * INNER


@pytest.mark.parametrize("ops", [None, []], ids=["kernel", "function body"])
def test_packed_weights_compute_the_same(tmp_path, ops):
    path = tmp_path / "fused.onnx"
    onnxfuse.optimize(gated_mlp_model(), output=path)
    x = np.random.default_rng(1).standard_normal((2, 5, HIDDEN)).astype(np.float32)
    expected = onnxfuse.session(gated_mlp_model(), ops=[]).run(None, {"x": x})[0]
    found = onnxfuse.session(path, ops=ops).run(None, {"x": x})[0]
    # float32 sums of 96 and 64 products, in another order: some ten roundings of values near one
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)


def test_packing_twice_changes_nothing(tmp_path):
    once, twice = tmp_path / "once.onnx", tmp_path / "twice.onnx"
    onnxfuse.optimize(gated_mlp_model(), output=once)
    onnxfuse.optimize(once, output=twice)
    assert once.read_bytes() == twice.read_bytes()
