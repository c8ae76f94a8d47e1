"""Why a pattern and a graph value disagree: the local tests shared by the matcher and by its explanations.

Each function returns None for agreement, else a `Mismatch` holding raw data; text is made only when somebody reads it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from onnxfuse import operators
from onnxfuse.facts import Facts
from onnxfuse.pattern import Accepts, Attribute, Const, Guard, Input, Node, Pattern

RTOL = 1e-5  # decimal literals in exporters carry at least six digits


class Mismatch(NamedTuple):
    """`what` was `expected`, `found` was there. `agrees_on_operator` ranks it above a wrong operator."""

    what: str
    expected: object
    found: object
    agrees_on_operator: bool = True


class _AtRunTime:
    def __str__(self) -> str:
        return "a value computed at run time"


AT_RUN_TIME = _AtRunTime()
ABSENT = type(
    "Absent", (), {"__str__": lambda _: "no input"}
)()  # stands for an input left out, where a value may stand


def constant(pattern: Const, value: ir.Value, facts: Facts) -> Mismatch | None:
    """Compare a constant of the graph with a number or list of the pattern."""
    array = None if value is ABSENT else facts.constant(value)
    if array is None:
        return Mismatch("constant", pattern.number, value)
    expected = pattern.array
    if array.size != expected.size or (expected.ndim and array.shape != expected.shape):
        return Mismatch("constant", pattern.number, f"constant of shape {list(array.shape)}")
    if expected.ndim == 0:
        agrees = _close(array.reshape(-1)[0].item(), expected.item(), array.dtype)
    else:
        agrees = all(
            _close(a.item(), b.item(), array.dtype) for a, b in zip(array.ravel(), expected.ravel(), strict=True)
        )
    if agrees:
        return None
    return Mismatch("constant", pattern.number, array.reshape(-1)[0].item() if array.size == 1 else array.tolist())


def _close(found: object, expected: object, dtype: np.dtype) -> bool:
    if isinstance(found, (bool, int)) and isinstance(expected, (bool, int)):
        return found == expected
    if isinstance(found, (str, bytes)) or isinstance(expected, str):
        return found == expected
    if found == expected:
        return True
    # A constant stored in half precision was rounded to it: half a unit in its last place.
    rtol = RTOL if (dtype.kind != "f" and dtype.kind != "V") or dtype.itemsize > 2 else RTOL + _half_ulp(dtype)
    return math.isclose(found, expected, rel_tol=rtol)


def _half_ulp(dtype: np.dtype) -> float:
    return float(ir.DataType.from_numpy(dtype).eps) / 2


def has_known_content(value: ir.Value, facts: Facts) -> bool:
    """Whether `value` is the same in every run: a constant, or computed from nothing but known sizes."""
    return facts.is_constant(value) or facts.constant(value) is not None


def capture(pattern: Input, value: ir.Value, facts: Facts) -> Mismatch | None:
    """Whether `value` may be captured at all: constant, scalar, rank. Named dimensions are the matcher's."""
    name = pattern.name
    if value is ABSENT:
        return Mismatch(name, "a value", value)
    if pattern.needs_constant:
        if not has_known_content(value, facts):
            return Mismatch(name, "constant scalar" if pattern.is_scalar else "constant", value)
        if pattern.is_scalar:
            array = facts.constant(value)
            if array is None or array.size != 1:
                return Mismatch(name, "constant scalar", value)
    if pattern.dims is not None:
        shape = facts.shape(value)
        if shape is not None:
            wanted = len(pattern.dims)
            if len(shape) < wanted or (len(shape) > wanted and not pattern.leading):
                return Mismatch(f"rank of {name}", f"{wanted}{' or more' if pattern.leading else ''}", len(shape))
    return None


def dimension(pattern: Input, position: int, bound: dict[object, object], dim: object) -> Mismatch | None:
    """Compare one known dimension with its name's binding. An unbound name agrees with anything."""
    name = pattern.dims[position]
    if isinstance(name, int):
        expected: object = name
    elif isinstance(name, tuple):
        if dim == 1:
            return None
        expected = bound.get(("dim", name[0]), dim)
    else:
        expected = bound.get(("dim", name), dim)
    if expected == dim:
        return None
    label = name if isinstance(name, str) else f"{name[0]}|1" if isinstance(name, tuple) else str(name)
    return Mismatch(f"dimension {label} of {pattern.name}", expected, dim)


def head(pattern: Node, value: ir.Value, index: int) -> Mismatch | None:
    """Whether `value` is output `index` of one of the pattern's operators."""
    producer = None if value is ABSENT else value.producer()
    if producer is None:
        return Mismatch("operator", pattern.label, value, False)
    if (producer.domain, producer.op_type) not in pattern.heads:
        return Mismatch("operator", pattern.label, _operator_text(producer), False)
    if value.index() != index:
        return Mismatch(f"output of {pattern.label}", index, value.index())
    return None


def absent(value: ir.Value) -> Mismatch | None:
    """Whether an optional input is left out."""
    return None if value is ABSENT else Mismatch("input", "none", value)


def condition(pattern: Guard) -> Mismatch:
    """The mismatch of a `where` whose predicate refused."""
    return Mismatch("condition", pattern.reason, "a value for which it is false")


def named_input(node: ir.Node, name: str) -> ir.Value:
    """The input of `node` that the standard calls `name`, ABSENT if it is left out."""
    index = operators.input_index(node.op_type, name)
    value = node.inputs[index] if index is not None and index < len(node.inputs) else None
    return ABSENT if value is None else value


def _operator_text(node: ir.Node) -> str:
    return f"{node.domain}.{node.op_type}" if node.domain else node.op_type


def signature(pattern: Node, node: ir.Node, facts: Facts) -> Mismatch | None:
    """Number of inputs and outputs and the parameters of a node whose operator agrees."""
    label = node.op_type
    outputs = len(node.outputs)
    if pattern.outputs > outputs or (outputs > pattern.outputs and operators.has_variadic_outputs(label)):
        return Mismatch(f"{label} outputs", pattern.outputs, outputs)
    given = len(pattern.inputs)
    named = {operators.input_index(label, name) for name in pattern.parameters} if not node.domain else set()
    if not pattern.takes_more_inputs:
        for index in range(given, len(node.inputs)):
            if node.inputs[index] is not None and index not in named and not _is_default_input(node, index, facts):
                return Mismatch(f"{label} inputs", given, f"input {index} as well")
    return _parameters(pattern, node, facts)


def _is_default_input(node: ir.Node, index: int, facts: Facts) -> bool:
    if node.op_type == "Slice" and index == 4:
        array = facts.constant(node.inputs[4])
        return array is not None and bool((array == 1).all())
    return False


def _parameters(pattern: Node, node: ir.Node, facts: Facts) -> Mismatch | None:
    wanted = pattern.parameters
    attributes = node.attributes
    for name, expected in wanted.items():
        if isinstance(expected, Pattern):
            continue  # an input, matched like any other
        found = parameter(node, name, facts)
        problem = _compare(node, name, expected, found, facts)
        if problem is not None:
            return problem
    for name in attributes if not pattern.takes_more_attributes else ():
        if name not in wanted:
            default = _default(node, name, facts)
            if default is not _REQUIRED and not _equal(default, attribute_value(node, name)):
                return Mismatch(f"{node.op_type}.{name}", default, attribute_value(node, name))
    return None


_REQUIRED = object()


def _default(node: ir.Node, name: str, facts: Facts) -> object:
    known = operators.defaults(node.domain, node.op_type, opset(node, facts))
    if known is None:
        return None
    if name not in known:
        return _REQUIRED
    return known[name]


def opset(node: ir.Node, facts: Facts) -> int:
    """The operator set version that `node` is written for."""
    graph = node.graph
    imports = facts.model.opset_imports
    if graph is not None and node.domain in graph.opset_imports:
        imports = graph.opset_imports
    return node.version or imports.get(node.domain, 1)


def attribute_value(node: ir.Node, name: str) -> object:
    """An attribute of `node` as plain data: numbers, str, tuples."""
    return operators.plain(node.attributes[name].value)


def parameter(node: ir.Node, name: str, facts: Facts) -> object:
    """A parameter by the standard's name, wherever this opset keeps it: attribute, input, default. None if nowhere."""
    if name in node.attributes:
        return attribute_value(node, name)
    if not node.domain:
        index = operators.input_index(node.op_type, name)
        if index is not None and index < len(node.inputs) and node.inputs[index] is not None:
            array = facts.constant(node.inputs[index])
            return AT_RUN_TIME if array is None else operators.plain(array.tolist())
    known = operators.defaults(node.domain, node.op_type, opset(node, facts))
    default = known.get(name) if known else None
    if default is None and not node.domain:
        default = _implied(node, name, facts)
    return default


def _implied(node: ir.Node, name: str, facts: Facts) -> object:
    """What the standard says in words about a parameter left out."""
    rank = _rank(node.inputs[0], facts) if node.inputs else None
    if node.op_type == "Transpose" and name == "perm" and rank is not None:
        return tuple(reversed(range(rank)))
    if node.op_type == "Slice" and name in ("axes", "steps"):
        starts = parameter(node, "starts", facts)
        if isinstance(starts, tuple):
            return tuple(range(len(starts))) if name == "axes" else (1,) * len(starts)
    return None


def _rank(value: ir.Value | None, facts: Facts) -> int | None:
    shape = None if value is None else facts.shape(value)
    return None if shape is None else len(shape)


def _compare(node: ir.Node, name: str, expected: Accepts | Attribute, found: object, facts: Facts) -> Mismatch | None:
    if isinstance(expected, Attribute):
        return Mismatch(f"{node.op_type}.{name}", "a constant", found) if found is AT_RUN_TIME else None
    for accepted in expected.values:
        if _equal(accepted, found):
            return None
        if name in ("axis", "axes") and found is not None:
            rank = _rank(node.outputs[0] if node.op_type == "Unsqueeze" else node.inputs[0], facts)
            if _equal(*(operators.canonical_axes(node.op_type, name, side, rank) for side in (accepted, found))):
                return None
    if operators.names_dtype(node.domain, node.op_type, name) and isinstance(found, int):
        found = operators.dtype_name(ir.DataType(found))
    return Mismatch(f"{node.op_type}.{name}", expected.text, found)


def _equal(expected: object, found: object) -> bool:
    if isinstance(found, tuple) and isinstance(expected, (int, float)):
        expected = (expected,)
    if isinstance(expected, tuple) and isinstance(found, (int, float)):
        found = (found,)
    if isinstance(expected, tuple) and isinstance(found, tuple):
        return len(expected) == len(found) and all(map(_equal, expected, found))
    if isinstance(expected, float) or isinstance(found, float):
        numbers = isinstance(expected, (int, float)) and isinstance(found, (int, float))
        return numbers and math.isclose(expected, found, rel_tol=RTOL)
    return expected == found
