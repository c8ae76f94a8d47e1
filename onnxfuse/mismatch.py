"""Why a pattern and a graph value disagree: the local tests shared by the matcher and by its explanations.

Each function returns None for agreement, else a `Mismatch` holding raw data; text is made only when somebody reads it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from onnxfuse import operators, parameters
from onnxfuse.dims import Dim, equal
from onnxfuse.facts import Facts
from onnxfuse.pattern import Accepts, Attribute, Const, Guard, Input, Node, Pattern


class Mismatch(NamedTuple):
    """`what` was `expected`, `found` was there. `agrees_on_operator` ranks it above a wrong operator."""

    what: str
    expected: object
    found: object
    agrees_on_operator: bool = True


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
    rtol = (
        parameters.RTOL
        if (dtype.kind != "f" and dtype.kind != "V") or dtype.itemsize > 2
        else parameters.RTOL + _half_ulp(dtype)
    )
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


def _may_be_equal(a: object, b: object) -> bool:
    if a == 1 or b == 1:
        return False  # a size of one broadcasts, so a graph with an open size runs when they differ
    symbolic = isinstance(a, Dim) or isinstance(b, Dim)
    return symbolic and isinstance(a, (int, Dim)) and isinstance(b, (int, Dim)) and equal(a, b) is None


def dimension(pattern: Input, position: int, bound: dict[object, object], dim: object) -> Mismatch | None:
    """Compare one known dimension with its name's binding; two sizes agree unless they are known to differ.

    Exporters give one size several symbols; where they must be equal, the graph could not run otherwise.
    """
    name = pattern.dims[position]
    if isinstance(name, int):
        expected: object = name
    elif isinstance(name, tuple):
        if dim == 1:
            return None
        expected = bound.get(("dim", name[0]), dim)
    else:
        expected = bound.get(("dim", name), dim)
    if expected == dim or _may_be_equal(expected, dim):
        return None
    label = name if isinstance(name, str) else f"{name[0]}|1" if isinstance(name, tuple) else str(name)
    return Mismatch(f"dimension {label} of {pattern.name}", expected, dim)


def head(pattern: Node, value: ir.Value, index: int) -> Mismatch | None:
    """Whether `value` is output `index` of one of the pattern's operators."""
    producer = None if value is ABSENT else value.producer()
    if producer is None:
        return Mismatch("operator", pattern.label, value, False)
    if (producer.domain, producer.op_type) not in pattern.heads:
        return Mismatch("operator", pattern.label, producer, False)
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


def signature(pattern: Node, node: ir.Node, facts: Facts) -> Mismatch | None:
    """Number of inputs and outputs and the parameters of a node whose operator agrees."""
    label = node.op_type
    outputs = len(node.outputs)
    if pattern.outputs > outputs or (outputs > pattern.outputs and operators.has_variadic_outputs(label)):
        return Mismatch(f"{label} outputs", pattern.outputs, outputs)
    for index in range(len(pattern.inputs), len(node.inputs)) if not pattern.takes_more_inputs else ():
        name = operators.input_name(label, index) if not node.domain else None
        if node.inputs[index] is None or name in pattern.parameters:
            continue
        if name is None or not parameters.is_default(node, name, parameters.value_of(node, name, facts), facts):
            return Mismatch(f"input {name or index} of {label}", None, node.inputs[index])
    return _parameters(pattern, node, facts)


def _parameters(pattern: Node, node: ir.Node, facts: Facts) -> Mismatch | None:
    wanted = pattern.parameters
    for name, expected in wanted.items():
        if isinstance(expected, Pattern):
            continue  # an input, matched like any other
        problem = _compare(node, name, expected, parameters.value_of(node, name, facts), facts)
        if problem is not None:
            return problem
    for name in node.attributes if not pattern.takes_more_attributes else ():
        if name not in wanted and not parameters.may_be_left_out(node, name, facts):
            default = parameters.default(node, name, facts)
            return Mismatch(f"{node.op_type}.{name}", default, parameters.attribute(node, name))
    return None


def _compare(node: ir.Node, name: str, expected: Accepts | Attribute, found: object, facts: Facts) -> Mismatch | None:
    if isinstance(expected, Attribute):
        return Mismatch(f"{node.op_type}.{name}", "a constant", found) if found is parameters.AT_RUN_TIME else None
    for accepted in expected.values:
        if parameters.equal(accepted, found):
            return None
        if accepted is None and parameters.is_default(node, name, found, facts):
            return None
        if name in ("axis", "axes") and found is not None:
            rank = parameters.rank_of(node.outputs[0] if node.op_type == "Unsqueeze" else node.inputs[0], facts)
            if parameters.equal(
                *(operators.canonical_axes(node.op_type, name, side, rank) for side in (accepted, found))
            ):
                return None
    if operators.names_dtype(node.domain, node.op_type, name) and isinstance(found, int):
        found = operators.dtype_name(ir.DataType(found))
    return Mismatch(f"{node.op_type}.{name}", expected.text, found)
