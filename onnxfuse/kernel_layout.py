"""Weights of fused nodes in the order in which the target's kernels read them.

The packed weight is computed when the model is written; the kernel then reads the file's own bytes, memory-mapped. The
node's function body undoes the order, so the model still runs without the library. A weight that anything but a fused
node reads stays as it is: it would be stored twice.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxfuse.custom_ops.functions import attach
from onnxfuse.custom_ops.packing import is_packable, pack, packed_shape
from onnxfuse.derived import DerivedTensor
from onnxfuse.facts import Facts
from onnxfuse.operators import OWN
from onnxfuse.soundness import bodies

# The weights of an operator, by input: panels (see onnxfuse.custom_ops.packing) or plain; one group has one dtype.
WEIGHTS = {"GatedMLP": ((1, 2), (3,)), "Linear": ((3,), (5,), (7,))}


def to_kernel_layout(model: ir.Model, facts: Facts, target: str) -> None:
    """Pack what kernels of `target` read packed, in place. CUDA kernels read weights as ONNX has them."""
    if target != "cpu":
        return
    packed: dict[ir.Value, ir.Value] = {}
    body = bodies(facts)
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        weights = _weights(node)
        for index, weight in weights:
            if weight not in packed and _may_be_packed(weight, facts):
                packed[weight] = _packed(weight, model, facts)
            if weight in packed:
                node.replace_input_with(index, packed[weight])
        if any(node.inputs[index] is not weight for index, weight in weights):
            attach(node, model, body)
    for weight in packed:
        if not weight.uses() and weight.name in model.graph.initializers:
            del model.graph.initializers[weight.name]


def _weights(node: ir.Node) -> list[tuple[int, ir.Value]]:
    """The inputs of a fused node that its kernel may read packed."""
    return [(index, value) for index, value in enumerate(node.inputs) if value is not None and _is_weight(node, index)]


def _is_weight(node: ir.Node, index: int) -> bool:
    return node.domain == OWN and any(index in group for group in WEIGHTS.get(node.op_type, ()))


def _may_be_packed(weight: ir.Value, facts: Facts) -> bool:
    tensor = facts.tensor(weight)
    if tensor is None or not is_packable(tuple(tensor.shape)) or weight.is_graph_output():
        return False
    return all(_is_weight(user, index) for user, index in weight.uses())


def _packed(weight: ir.Value, model: ir.Model, facts: Facts) -> ir.Value:
    shape = packed_shape(tuple(facts.tensor(weight).shape))
    name = f"{weight.name}/packed"
    value = ir.Value(
        name=name,
        const_value=DerivedTensor(weight, pack, shape, name),
        shape=ir.Shape(shape),
        type=ir.TensorType(weight.dtype or facts.dtype(weight)),
    )
    model.graph.initializers.add(value)
    return value
