"""The parameters of a graph node by the standard's names: attribute or input, given or default."""

from __future__ import annotations

import math

import onnx_ir as ir

from onnxfuse import operators
from onnxfuse.facts import Facts

RTOL = 1e-5  # decimal literals in exporters carry at least six digits


class _AtRunTime:
    def __str__(self) -> str:
        return "a value computed at run time"


AT_RUN_TIME = _AtRunTime()


def value_of(node: ir.Node, name: str, facts: Facts) -> object:
    """The parameter `name` wherever this opset keeps it: attribute, input, default. None if it has no value."""
    if name in node.attributes:
        return attribute(node, name)
    if not node.domain:
        index = operators.input_index(node.op_type, name)
        if index is not None and index < len(node.inputs) and node.inputs[index] is not None:
            array = facts.constant(node.inputs[index])
            return AT_RUN_TIME if array is None else operators.plain(array.tolist())
    return default(node, name, facts)


def attribute(node: ir.Node, name: str) -> object:
    """An attribute as plain data: numbers, str, tuples."""
    found = node.attributes[name]
    return AT_RUN_TIME if found.is_ref() else operators.plain(found.value)


def default(node: ir.Node, name: str, facts: Facts) -> object:
    """The value a parameter has when it is left out, None if it has none."""
    known = operators.defaults(node.domain, node.op_type, opset(node, facts))
    if known is None:
        return None
    return _implied(node, name, facts) if known.get(name) is None else known[name]


def may_be_left_out(node: ir.Node, name: str, facts: Facts) -> bool:
    """Whether a pattern that does not speak of the attribute `name` means what `node` says: required, or default."""
    known = operators.defaults(node.domain, node.op_type, opset(node, facts))
    is_required = known is not None and name not in known
    return is_required or is_default(node, name, attribute(node, name), facts)


def is_default(node: ir.Node, name: str, found: object, facts: Facts) -> bool:
    """Whether a parameter that is `found` might as well have been left out."""
    if node.op_type == "Split" and not node.domain:
        if name == "split":
            return isinstance(found, tuple) and len(set(found)) == 1
        if name == "num_outputs":
            return True  # what the pattern's own number of outputs says
    return equal(default(node, name, facts), found)


def opset(node: ir.Node, facts: Facts) -> int:
    """The operator set version that `node` is written for."""
    imports = facts.model.opset_imports
    if node.graph is not None and node.domain in node.graph.opset_imports:
        imports = node.graph.opset_imports
    return imports.get(node.domain, 1)


def _implied(node: ir.Node, name: str, facts: Facts) -> object:
    """What the standard says in words about a parameter left out."""
    if node.op_type == "Transpose" and name == "perm":
        rank = rank_of(node.inputs[0], facts)
        return None if rank is None else tuple(reversed(range(rank)))
    if node.op_type == "Slice" and name in ("axes", "steps"):
        starts = value_of(node, "starts", facts)
        if isinstance(starts, tuple):
            return tuple(range(len(starts))) if name == "axes" else (1,) * len(starts)
    return None


def rank_of(value: ir.Value | None, facts: Facts) -> int | None:
    """The number of dimensions, None if unknown."""
    shape = None if value is None else facts.shape(value)
    return None if shape is None else len(shape)


def equal(expected: object, found: object) -> bool:
    """Whether two parameters mean the same: one number and a list of it do, floats agree to six digits."""
    if isinstance(found, tuple) and isinstance(expected, (int, float)):
        expected = (expected,)
    if isinstance(expected, tuple) and isinstance(found, (int, float)):
        found = (found,)
    if isinstance(expected, tuple) and isinstance(found, tuple):
        return len(expected) == len(found) and all(map(equal, expected, found))
    if isinstance(expected, float) or isinstance(found, float):
        numbers = isinstance(expected, (int, float)) and isinstance(found, (int, float))
        return numbers and math.isclose(expected, found, rel_tol=RTOL)
    return expected == found
