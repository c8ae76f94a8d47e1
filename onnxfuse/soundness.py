"""What must hold for every model that leaves onnxfuse: its interface, its completeness, the ONNX checker."""

from __future__ import annotations

import onnx
import onnx_ir as ir

from onnxfuse import dims, operators
from onnxfuse.facts import Facts
from onnxfuse.verify.slices import IR_VERSION

LARGE = 1 << 16  # bytes; the checker is shown the dtype and shape of larger weights, not their content


def interface(model: ir.Model) -> tuple[str, ...]:
    """Inputs and outputs as text: names, order, dtypes and shapes, symbols included."""
    return tuple(
        f"{kind} {value.name} {value.type} {value.shape}"
        for kind, values in (("input", model.graph.inputs), ("output", model.graph.outputs))
        for value in values
    )


def describe(node: ir.Node, facts: Facts) -> None:
    """Write what is known of the dtypes and shapes around `node` into its inputs and outputs."""
    for value in (*node.inputs, *node.outputs):
        if value is None:
            continue
        dtype, shape = facts.dtype(value), facts.shape(value)
        if value.type is None and dtype is not None:
            value.type = ir.TensorType(dtype)
        if value.shape is None and shape is not None:
            value.shape = ir.Shape([_plain(size) for size in shape])


def _plain(size: dims.Size | None) -> int | str | None:
    """A size as a model may state it: a number, or a name that an input gives to it."""
    if isinstance(size, int) or size is None:
        return size
    names = dims.symbols(size)
    return str(size) if {str(size)} == names and ":" not in str(size) else None


def complete(model: ir.Model, facts: Facts) -> None:
    """Give `model` what its fused nodes need: versions, dtypes and shapes, and no function that nobody calls."""
    used: set[tuple[str, str, str]] = set()
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if node.domain == operators.OWN:
            describe(node, facts)
        _mark(node, model, used)
    for name in [name for name in model.functions if name not in used and name[0] == operators.OWN]:
        del model.functions[name]
    domains = {node.domain for node in ir.traversal.RecursiveGraphIterator(model.graph)}
    if operators.OWN in domains:
        model.graph.opset_imports[operators.OWN] = 1
        model.ir_version = max(model.ir_version, IR_VERSION)


def _mark(node: ir.Node, model: ir.Model, used: set[tuple[str, str, str]]) -> None:
    function = model.functions.get(node.op_identifier())
    if function is not None and node.op_identifier() not in used:
        used.add(node.op_identifier())
        for inner in ir.traversal.RecursiveGraphIterator(function):
            _mark(inner, model, used)


def checker_complaint(model: ir.Model) -> str | None:
    """What `onnx.checker` (full check) has against `model`, None if it accepts it. Large weights are not read."""
    proto = _outline(model)
    try:
        onnx.checker.check_model(proto, full_check=True)
    except Exception as error:  # the checker and shape inference raise different types
        return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return None


def _outline(model: ir.Model) -> onnx.ModelProto:
    """`model` with its large weights as inputs."""
    graph = model.graph
    weights = [
        value
        for value in graph.initializers.values()
        if value.const_value is not None
        and (value.const_value.nbytes > LARGE or isinstance(value.const_value, ir.ExternalTensor))
    ]
    given = {value.name for value in graph.inputs}
    tensors = [value.const_value for value in weights]
    for value in weights:
        del graph.initializers[value.name]
        value.const_value = None
    try:
        proto = ir.to_proto(model)
    finally:
        for value, tensor in zip(weights, tensors, strict=True):
            value.const_value = tensor
            graph.initializers.add(value)
    for value, tensor in zip(weights, tensors, strict=True):
        if value.name not in given:
            proto.graph.input.append(
                onnx.helper.make_tensor_value_info(value.name, int(tensor.dtype), [int(size) for size in tensor.shape])
            )
    return proto
