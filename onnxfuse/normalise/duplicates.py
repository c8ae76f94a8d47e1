"""Nodes that compute the same become one."""

from __future__ import annotations

import onnx_ir as ir

from onnxfuse.facts import SMALL, Facts
from onnxfuse.normalise.constants import RANDOM
from onnxfuse.normalise.sweep import replace
from onnxfuse.order import subgraphs


def merge_duplicates(facts: Facts) -> None:
    """Let the first of several equal nodes of the main graph stand for all.

    Two graph outputs stay two: sharing one node would take an Identity, which is no less a node. onnx_ir's pass puts
    one in, and another one when it sees the result again.
    """
    graph = facts.model.graph
    first: dict[tuple, ir.Node] = {}
    merged: list[ir.Node] = []
    for node in graph:
        if node.op_type in RANDOM or any(subgraphs(node)):
            continue
        kept = first.setdefault(_content(node), node)
        if kept is node:
            continue
        pairs = list(zip(node.outputs, kept.outputs, strict=True))
        if not any(old.is_graph_output() and new.is_graph_output() for old, new in pairs):
            for old, new in pairs:
                replace(old, new, facts)
            merged.append(node)
    graph.remove(merged, safe=True)


def _content(node: ir.Node) -> tuple:
    attributes = sorted((a.name, a.type, _hashable(a)) for a in node.attributes.values())
    return (*node.op_identifier(), len(node.outputs), *map(id, node.inputs), *attributes)


def _hashable(attribute: ir.Attr) -> object:
    value = attribute.value
    match attribute.type:
        case ir.AttributeType.TENSOR if not attribute.is_ref() and value.size <= SMALL:
            return value.dtype, tuple(value.shape), value.tobytes()
        case ir.AttributeType.TENSOR | ir.AttributeType.TENSORS:
            return id(value)
    return tuple(value) if isinstance(value, list) else value
