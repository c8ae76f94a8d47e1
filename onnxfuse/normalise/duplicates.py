"""Nodes that compute the same become one, and so do constants that hold the same."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import onnx_ir as ir

from onnxfuse.facts import SMALL, Facts
from onnxfuse.normalise.constants import RANDOM
from onnxfuse.normalise.sweep import replace
from onnxfuse.operators import OWN
from onnxfuse.order import subgraphs

SHARED_CONSTANT = 1024  # elements up to which equal constants are merged
PURE = ("", "ai.onnx.ml", "com.microsoft", OWN)  # domains whose operators, but for the random ones, are functions
RANDOM_OF_MICROSOFT = {"BiasDropout", "BitmaskBiasDropout", "BitmaskDropout", "PythonOp", "Sampling"}
LARGEST_TABLE = 1 << 24  # elements: cosines of 128k positions


def merge_constants(facts: Facts) -> None:
    """Let the first of several equal small initializers of a graph stand for all.

    onnx_ir has a pass for this; it decodes each tensor again, of which the facts know the content.
    """
    for graph in facts.model.graphs():
        first: dict[tuple, ir.Value] = {}
        for value in list(graph.initializers.values()):
            if value.is_graph_input() or value.is_graph_output() or value.dtype == ir.DataType.STRING:
                continue
            content = facts.constant(value)
            if content is None or content.size > SHARED_CONSTANT:
                continue
            kept = first.setdefault((facts.dtype(value), content.shape, content.tobytes()), value)
            if kept is not value:
                value.replace_all_uses_with(kept)
                del graph.initializers[value.name]


def merge_tables(facts: Facts) -> None:
    """Let one of several equal constants that a Gather selects rows of stand for all.

    Older exports store the rotary table once a layer. Other weights are as large and never equal: they are not read.
    """
    graph = facts.model.graph
    first: dict[tuple, list[ir.Value]] = defaultdict(list)
    for node in graph:
        table = node.inputs[0] if node.op_type == "Gather" and not node.domain else None
        tensor = None if table is None else facts.tensor(table)
        if tensor is None or tensor.size > LARGEST_TABLE:
            continue
        alike = first[tensor.dtype, tuple(tensor.shape)]
        if table not in alike:
            kept = next((other for other in alike if np.array_equal(facts.tensor(other), tensor.numpy())), None)
            if kept is None:
                alike.append(table)
            elif not table.is_graph_output():
                table.replace_all_uses_with(kept)


def merge_duplicates(facts: Facts) -> None:
    """Let the first of several equal nodes of the main graph stand for all.

    Two graph outputs stay two: sharing one node would take an Identity, which is no less a node. onnx_ir's pass puts
    one in, and another one when it sees the result again.
    """
    graph = facts.model.graph
    first: dict[tuple, ir.Node] = {}
    merged: list[ir.Node] = []
    for node in graph:
        if not _is_pure(node) or subgraphs(node):
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


def _is_pure(node: ir.Node) -> bool:
    """Whether equal inputs give equal outputs: nobody knows that of operators of other domains."""
    return node.domain in PURE and node.op_type not in RANDOM | RANDOM_OF_MICROSOFT


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
