"""A model in double precision: what it computes, but for its roundings."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

DOUBLE = ir.DataType.DOUBLE
NARROWER = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
# Where an attribute names the dtype of a result.
DTYPE_ATTRIBUTES = ("to", "dtype", "stash_type", "softmax_precision")


def in_double_precision(model: ir.Model) -> ir.Model:
    """A copy of `model` with double where it has a narrower float: inputs, outputs, weights and whatever is computed.

    ONNX Runtime may have no double kernel for an operator of it; then the copy does not load.
    """
    wide = model.clone()
    graphs = [*wide.graphs(), *wide.functions.values()]
    for graph in graphs:
        if isinstance(graph, ir.Graph):
            for value in (*graph.inputs, *graph.outputs):
                if value.dtype in NARROWER:
                    value.type = ir.TensorType(DOUBLE)  # clones share theirs
            for value in graph.initializers.values():
                if value.const_value is not None and value.const_value.dtype in NARROWER:
                    value.const_value = _doubled(value.const_value)
                    value.type = ir.TensorType(DOUBLE)
        for node in graph:
            for value in node.outputs:
                if not value.is_graph_output():
                    value.type = value.shape = None  # the runtime infers them
            for attribute in list(node.attributes.values()):
                changed = _widened(node, attribute)
                if changed is not None:
                    node.attributes[attribute.name] = changed
    return wide


def _widened(node: ir.Node, attribute: ir.Attr) -> ir.Attr | None:
    if attribute.is_ref():
        return None
    if attribute.type == ir.AttributeType.TENSOR and attribute.value.dtype in NARROWER:
        return ir.AttrTensor(attribute.name, _doubled(attribute.value))
    if attribute.type == ir.AttributeType.INT and attribute.name in DTYPE_ATTRIBUTES and attribute.value in NARROWER:
        return ir.AttrInt64(attribute.name, DOUBLE)
    if node.op_type == "Constant" and attribute.type in (ir.AttributeType.FLOAT, ir.AttributeType.FLOATS):
        return ir.AttrTensor("value", ir.tensor(np.array(attribute.value, np.float64)))
    return None


def _doubled(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    return ir.Tensor(tensor.numpy().astype(np.float64), name=tensor.name)
