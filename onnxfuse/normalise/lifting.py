"""Constant nodes become initializers, so that a constant has one form."""

from __future__ import annotations

from collections import defaultdict

import onnx_ir as ir

from onnxfuse.facts import SMALL, Facts
from onnxfuse.order import all_nodes


def lift_constants(facts: Facts) -> None:
    """Turn every Constant node that makes a tensor of numbers into an initializer of its graph, under the same name.

    Equal small ones of a graph become one: exporters write the same axes, sizes and scales once a layer.
    onnx_ir has a pass for this; it asks of each tensor whether it follows a typing.Protocol, which takes as long as
    all the rest of the normalisation.
    """
    lifted: dict[ir.Graph, list[ir.Node]] = defaultdict(list)
    first: dict[tuple, ir.Value] = {}
    for node in all_nodes(facts.model.graph):
        if node.op_type != "Constant" or node.domain or node.outputs[0].is_graph_output():
            continue
        output = node.outputs[0]
        tensor = facts.tensor(output)
        if tensor is None:  # text, or sparse
            continue
        content = (node.graph, tensor.dtype, tuple(tensor.shape), tensor.tobytes()) if tensor.size <= SMALL else node
        constant = first.get(content)
        if constant is None:
            kind = ir.TensorType(tensor.dtype)
            first[content] = constant = ir.Value(name=output.name, type=kind, shape=tensor.shape, const_value=tensor)
            constant.metadata_props.update(output.metadata_props)
            node.graph.initializers.add(constant)
        output.replace_all_uses_with(constant)
        lifted[node.graph].append(node)
    for graph, nodes in lifted.items():
        graph.remove(nodes)
