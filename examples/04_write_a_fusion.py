"""Write a fusion: a pattern is a Python function, its parameters are what it captures.

This one rewrites x * sigmoid(x) to ONNX Runtime's own QuickGelu. In the repository it would be a file in patterns/.
"""

import onnx_ir as ir
from onnx import TensorProto, helper

from onnxfuse.dsl import fusion, op, tensor
from onnxfuse.normalise import normalise
from onnxfuse.rewriter import rewrite


@fusion(stage="elementwise")
def quick_gelu(x=tensor()):
    """x * sigmoid(x), in either order of the operands."""
    return x * op.Sigmoid(x)


@quick_gelu.check
def supported(m):
    yield m.x.dtype == "float32", "x is {m.x}, expected float32"


@quick_gelu.rewrite
def fused(new, m):
    return new.ns("com.microsoft").QuickGelu(m.x, alpha=1.0)


def silu_model():
    nodes = [helper.make_node("Sigmoid", ["x"], ["s"]), helper.make_node("Mul", ["s", "x"], ["y"], name="silu")]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N"]) for name in "xy"]
    graph = helper.make_graph(nodes, "silu", values[:1], values[1:])
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))


if __name__ == "__main__":
    model = silu_model()
    for event in rewrite(model, normalise(model), [quick_gelu]):
        print(event)
    print([node.op_type for node in model.graph])
