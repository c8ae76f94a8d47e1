"""One form for sums and signs: Add of two, Sub, Neg. A sign costs no rounding, so all of this is exact."""

from __future__ import annotations

import onnx_ir as ir

from onnxfuse.normalise.simplify import producer, same_shape
from onnxfuse.normalise.sweep import Site, simplifies


def is_number(value: ir.Value, number: float, site: Site) -> bool:
    """Whether `value` is a constant of one element that is `number`."""
    tensor = site.facts.tensor(value)
    return tensor is not None and tensor.size == 1 and tensor.numpy().reshape(-1)[0] == number


def _is_float(value: ir.Value, site: Site) -> bool:
    dtype = site.facts.dtype(value)
    return dtype is not None and dtype.is_floating_point()


@simplifies("Sum")
def sum_in_pairs(node: ir.Node, site: Site) -> ir.Value | None:
    """Sum(a, b, c) is (a + b) + c, the order in which ONNX Runtime adds."""
    if not site.canonical or not node.inputs:
        return None
    total = node.inputs[0]
    for value in node.inputs[1:]:
        total = site.op("Add", total, value)
    return total


@simplifies("Mul", "Div", "Sub")
def negation(node: ir.Node, site: Site) -> ir.Value | None:
    """x * -1, x / -1 and 0 - x are -x."""
    a, b = node.inputs
    if not site.canonical or not _is_float(node.outputs[0], site):
        return None
    negated = None
    if node.op_type == "Sub":
        negated = b if is_number(a, 0, site) else None
    elif is_number(b, -1, site):
        negated = a
    elif node.op_type == "Mul" and is_number(a, -1, site):
        negated = b
    if negated is None or not same_shape(negated, node.outputs[0], site):
        return None
    return site.op("Neg", negated)


@simplifies("Neg")
def sign_of_a_sum(node: ir.Node, site: Site) -> ir.Value | None:
    """-(-x) is x, -(a - b) is b - a."""
    if not site.canonical:
        return None
    inner = producer(node.inputs[0], "Neg")
    if inner is not None:
        return inner.inputs[0]
    difference = producer(node.inputs[0], "Sub")
    return site.op("Sub", *difference.inputs[::-1]) if difference is not None else None


@simplifies("Add", "Sub")
def sum_with_a_sign(node: ir.Node, site: Site) -> ir.Value | None:
    """a + -b is a - b, a - -b is a + b; a constant is added, never subtracted."""
    a, b = node.inputs
    if not site.canonical or not _is_float(node.outputs[0], site):
        return None
    opposite = {"Add": "Sub", "Sub": "Add"}[node.op_type]
    negated = producer(b, "Neg")
    if negated is not None:
        return site.op(opposite, a, negated.inputs[0])
    negated = producer(a, "Neg")
    if node.op_type == "Add" and negated is not None:
        return site.op("Sub", b, negated.inputs[0])
    tensor = site.facts.tensor(b)
    if node.op_type == "Sub" and tensor is not None and tensor.size == 1:
        return site.op("Add", a, site.constant(-tensor.numpy()))
    return None


@simplifies("Mul", "Div")
def sign_outside_a_product(node: ir.Node, site: Site) -> ir.Value | None:
    """-a * b is -(a * b)."""
    if not site.canonical:
        return None
    for position in (0, 1):
        negated = producer(node.inputs[position], "Neg")
        if negated is not None:
            operands = list(node.inputs)
            operands[position] = negated.inputs[0]
            return site.op("Neg", site.op(node.op_type, *operands))
    return None
