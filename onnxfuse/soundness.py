"""What must hold for every model that leaves onnxfuse: its interface, its completeness, the ONNX checker."""

from __future__ import annotations

import functools
from collections.abc import Callable

import onnx
import onnx_ir as ir

from onnxfuse import dims, model_io, operators
from onnxfuse.custom_ops import functions
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


def complete(model: ir.Model, facts: Facts) -> None:
    """Give `model` what its fused nodes need: versions, dtypes and shapes; drop bodies of nodes that are gone.

    Initializers are put in the order of their first use, so that rewriting the result again changes nothing.
    """
    used: set[tuple[str, str, str]] = set()
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        _mark(node, model, used)
        if node.domain == operators.OWN:
            describe(node, facts)
    for name in [name for name in model.functions if name not in used and name[0] == operators.OWN]:
        del model.functions[name]
    for graph in model.graphs():
        _order_initializers(graph)
    domains = {node.domain for node in ir.traversal.RecursiveGraphIterator(model.graph)}
    if operators.OWN in domains:
        model.graph.opset_imports[operators.OWN] = 1
        model.ir_version = max(model.ir_version, IR_VERSION)


def _order_initializers(graph: ir.Graph) -> None:
    used = (value for node in ir.traversal.RecursiveGraphIterator(graph) for value in node.inputs if value is not None)
    held = graph.initializers
    order = dict.fromkeys((*(value.name for value in used if held.get(value.name) is value), *held))
    values = [held.pop(name) for name in order]
    for value in values:
        held.add(value)
        if value.const_value is not None:
            value.type, value.shape = ir.TensorType(value.const_value.dtype), ir.Shape(value.const_value.shape)


def describe(node: ir.Node, facts: Facts) -> None:
    """Write what is known of dtypes and shapes around `node` into its inputs and outputs."""
    for value in (*node.inputs, *node.outputs):
        if value is None:
            continue
        dtype, shape = facts.dtype(value), facts.shape(value)
        if value.type is None and dtype is not None:
            value.type = ir.TensorType(dtype)
        if value.shape is None and shape is not None:
            value.shape = ir.Shape([_stated(size) for size in shape])


def bodies(facts: Facts) -> Callable[[ir.Node, int], ir.Function]:
    """Makes the body of a new node, whose inputs' dtypes and ranks only `facts` may know: see `functions.body`.

    Nodes with equal attributes, dtypes and shapes share one function.
    """
    made: dict[tuple, ir.Function] = {}

    def body(node: ir.Node, opset: int) -> ir.Function:
        describe(node, facts)
        attributes = tuple((a.name, str(a.value)) for a in node.attributes.values())
        inputs = tuple(None if v is None else (v.dtype, v.shape and tuple(v.shape)) for v in node.inputs)
        key = (node.op_type, opset, attributes, inputs, len(node.outputs))
        if key not in made:
            made[key] = functions.body(node, opset)
        return made[key]

    return body


@functools.cache
def _stated(size: dims.Size | None) -> int | str | None:
    """A size as a model may state it: a number, or the name that an input's dimension has."""
    if size is None or isinstance(size, int):
        return size
    return str(size) if dims.symbols(size) == {str(size)} and ":" not in str(size) else None


def _mark(node: ir.Node, model: ir.Model, used: set[tuple[str, str, str]]) -> None:
    function = model.functions.get(node.op_identifier())
    if function is not None and node.op_identifier() not in used:
        used.add(node.op_identifier())
        for inner in ir.traversal.RecursiveGraphIterator(function):
            _mark(inner, model, used)


def checker_complaint(model: ir.Model) -> str | None:
    """What `onnx.checker` (full check) has against `model`, None if it accepts it. Large weights are not read."""
    proto, weights = model_io.outline(model, LARGE)
    given = {value.name for value in model.graph.inputs}
    kept = [tensor for tensor in proto.graph.initializer if tensor.data_location != onnx.TensorProto.EXTERNAL]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
    for value in weights:
        if value.name not in given:
            dtype, shape = int(value.const_value.dtype), [int(size) for size in value.const_value.shape]
            proto.graph.input.append(onnx.helper.make_tensor_value_info(value.name, dtype, shape))
    try:
        onnx.checker.check_model(proto, full_check=True)
    except Exception as error:  # the checker and shape inference raise different types
        return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return None
