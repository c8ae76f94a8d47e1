"""Write a fusion: what to look for, what it must satisfy, what takes its place. It is verified like the others."""

import onnx.parser

import onnxfuse
from onnxfuse.dsl import any_of, fusion, op, tensor

MODEL = """
<ir_version: 9, opset_import: ["" : 17]>
mobile (float[N, 16] x) => (float[N, 16] y) <float three = {3}, float zero = {0}, float six = {6}> {
    shifted = Add(three, x)
    gate = Clip(shifted, zero, six)
    product = Mul(x, gate)
    y = Div(product, six)
}
"""


@fusion(stage="elementwise", tolerance={"float32": 1e-6})
def hard_swish(x=tensor("... D")):
    """HardSwish: y = x * clip(x + 3, 0, 6) / 6, in either order of the factors."""
    gate = op.Clip(x + 3.0, 0.0, 6.0)
    return any_of(x * gate / 6.0, x * (gate / 6.0), (x / 6.0) * gate)


@hard_swish.check
def supported(m):
    yield m.x.dtype in m.FLOATS, "x is {m.x.dtype}; HardSwish takes {m.FLOATS}"


@hard_swish.rewrite
def fused(new, m):
    return new.onnx.HardSwish(m.x)


result = onnxfuse.optimize(onnx.parser.parse_model(MODEL), fusions=[hard_swish])
for event in result.events:
    print(event)
print([node.op_type for node in result.model.graph])
