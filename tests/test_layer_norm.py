"""LayerNorm contains an RMSNorm of the centred input; it is left whole, because ONNX Runtime fuses all of it."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

import onnxfuse
from onnxfuse.explain import Refused


def decomposed_layer_norm():
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["mean"], axes=[-1]),
        helper.make_node("Sub", ["x", "mean"], ["centred"]),
        helper.make_node("Pow", ["centred", "two"], ["square"]),
        helper.make_node("ReduceMean", ["square"], ["variance"], axes=[-1]),
        helper.make_node("Add", ["variance", "eps"], ["shifted"]),
        helper.make_node("Sqrt", ["shifted"], ["deviation"]),
        helper.make_node("Div", ["centred", "deviation"], ["normalised"]),
        helper.make_node("Mul", ["normalised", "weight"], ["scaled"], name="norm/Mul"),
        helper.make_node("Add", ["scaled", "bias"], ["y"]),
    ]
    constants = {"two": np.array(2), "eps": np.array(1e-5), "weight": np.ones(16), "bias": np.zeros(16)}
    graph = helper.make_graph(
        nodes,
        "layer_norm",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", "S", 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["B", "S", 16])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_layer_norm_is_not_fused_as_rms_norm():
    result = onnxfuse.optimize(decomposed_layer_norm())
    assert result.report.fused == {}


def test_the_refusal_says_what_was_expected_and_what_was_found():
    (refused,) = [e for e in onnxfuse.explain(decomposed_layer_norm()).events if isinstance(e, Refused)]
    assert (refused.fusion, refused.node) == ("rms_norm", "norm/Mul")
    assert "expected RMSNorm, found LayerNorm" in refused.reason
