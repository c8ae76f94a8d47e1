"""Movement after a Concat in place of movement before it: layers stacked into one tensor, sizes computed as vectors."""

from __future__ import annotations

import onnx_ir as ir

from onnxfuse.normalise.simplify import attr, reshape_target
from onnxfuse.normalise.sweep import Site, simplifies

RESHAPES = ("Reshape", "Unsqueeze", "Squeeze", "Flatten")
ARITHMETIC = ("Add", "Sub", "Mul")


# ---- parts that are reshaped alike -----------------------------------------------------------------------------------


def _origins(value: ir.Value, axis: int, site: Site) -> list[ir.Value]:
    """The tensors that `value` is reshaped from with all axes before `axis` as they are; the farthest first."""
    shape = site.facts.shape(value)
    found: list[ir.Value] = []
    node = value.producer()
    while node is not None and node.op_type in RESHAPES and not node.domain:
        source = site.facts.shape(node.inputs[0])
        if source is not None and len(source) > axis and source[:axis] == shape[:axis]:
            found.insert(0, node.inputs[0])
        node = node.inputs[0].producer()
    return found


def _dies_with(user: ir.Node, value: ir.Value) -> bool:
    """Whether only `user` reads the value."""
    return not value.is_graph_output() and all(use.node is user for use in value.uses())


@simplifies("Concat")
def concat_of_reshaped(node: ir.Node, site: Site) -> ir.Value | None:
    """Concat(Unsqueeze(a, i), Unsqueeze(b, i), axis=i) is Reshape(Concat(a, b, axis=i)): the data lie the same way.

    So for any reshape that leaves the axes before the Concat's alone; only where that saves a node.
    """
    shape = site.facts.shape(node.outputs[0])
    parts = [site.facts.shape(v) for v in node.inputs]
    if site.canonical or shape is None or None in parts:
        return None
    if len({v for v in node.inputs if v.producer() is not None and _dies_with(node, v)}) < 2:
        return None
    axis = attr(node, "axis") % len(shape)
    origins = [_origins(v, axis, site) for v in node.inputs]
    if not all(origins):
        return None
    for end in (0, -1):  # the farthest, then the nearest
        chosen = [found[end] for found in origins]
        first, *others = (site.facts.shape(v) for v in chosen)
        if any(other != first for other in others):
            continue
        target = reshape_target((*first[:axis], len(chosen) * first[axis], *first[axis + 1 :]), shape)
        if target is not None:
            joined = site.op("Concat", *chosen, axis=axis)
            return site.op("Reshape", joined, site.constant(target, "shape"))
    return None


# ---- sizes in tensors of rank one ------------------------------------------------------------------------------------


def _makes_vector(node: ir.Node, site: Site) -> bool:
    """Whether the node is Unsqueeze(scalar, [0])."""
    if node.op_type != "Unsqueeze" or node.domain or len(node.inputs) != 2 or site.facts.rank(node.inputs[0]) != 0:
        return False
    return site.facts.rank(node.outputs[0]) == 1


def _rises_freely(value: ir.Value, user: ir.Node, site: Site) -> bool:
    """Whether the scalar that `user` reads takes no more nodes as a vector."""
    if site.facts.is_constant(value):
        return True
    if any(_makes_vector(use.node, site) for use in value.uses()):
        return True
    node = value.producer()
    if node is None or not _dies_with(user, value):
        return False
    return _picks(node, site) or (_computes(node) and all(_rises_freely(v, node, site) for v in node.inputs))


def _picks(node: ir.Node, site: Site) -> bool:
    """Whether the node is Gather(vector, constant scalar)."""
    if node.op_type != "Gather" or node.domain or site.facts.rank(node.inputs[0]) != 1:
        return False
    return site.facts.is_constant(node.inputs[1])


def _computes(node: ir.Node) -> bool:
    return node.op_type in ARITHMETIC and not node.domain


@simplifies("Unsqueeze")
def size_as_vector(node: ir.Node, site: Site) -> ir.Value | None:
    """Unsqueeze(Add(pos, size), [0]) is Add of the two as vectors, where these are there or take no node more."""
    scalar = node.inputs[0]
    source = scalar.producer()
    if site.canonical or source is None or not _makes_vector(node, site) or not _dies_with(node, scalar):
        return None
    if _picks(source, site):
        index = site.facts.tensor(source.inputs[1]).numpy().reshape(1)
        return site.op("Gather", source.inputs[0], site.constant(index), axis=0)
    if not _computes(source) or not all(_rises_freely(v, source, site) for v in source.inputs):
        return None
    return site.op(source.op_type, *(site.op("Unsqueeze", v, node.inputs[1]) for v in source.inputs))
