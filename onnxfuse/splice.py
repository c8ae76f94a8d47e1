"""Putting a replacement into the graph without losing anything: which nodes go, which stay, names and metadata."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

import onnx_ir as ir

from onnxfuse import operators
from onnxfuse.fusion import Fusion, Match, node_text
from onnxfuse.order import Order

NORMS = ("RMSNorm", "SkipRMSNorm")
REPLACED_TEXT_LIMIT = 2000  # characters of node names in a fused node's metadata


@dataclass
class Candidate:
    """A replacement that is built but not yet in the graph: what the verifier judges.

    `outputs[i]` gives way to `new_outputs[i]`. `nodes` is all that matched, `removed` those that nothing else needs.
    `functions` are the bodies of the new nodes that have one.
    """

    fusion: Fusion
    match: Match
    nodes: tuple[ir.Node, ...]
    inputs: tuple[ir.Value, ...]
    outputs: tuple[ir.Value, ...]
    new_outputs: tuple[ir.Value, ...]
    new_nodes: list[ir.Node]
    constants: list[ir.Value]
    removed: list[ir.Node] = field(default_factory=list)
    functions: list[ir.Function] = field(default_factory=list)


def removable(match: Match, replaced: Iterable[ir.Value]) -> list[ir.Node]:
    """The nodes of `match`, within its root's graph, that nothing needs any more once `replaced` are replaced."""
    replaced = set(replaced)
    graph = match.root.graph
    own = {node for node in match.nodes if node.graph is graph}
    removed: set[ir.Node] = set()
    pending = list(own)
    while pending:
        node = pending.pop()
        if node not in removed and all(_is_free(output, replaced, removed) for output in node.outputs):
            removed.add(node)
            producers = (value.producer() for value in node.inputs if value is not None)
            pending.extend(producer for producer in producers if producer in own)
    return [node for node in match.nodes if node in removed]


def _is_free(value: ir.Value, replaced: set[ir.Value], removed: set[ir.Node]) -> bool:
    if value in replaced:
        return True
    return not value.is_graph_output() and all(use.node in removed for use in value.uses())


def computed_twice(
    match: Match, removed: Iterable[ir.Node], replaced: Iterable[ir.Value], new_nodes: Iterable[ir.Node] = ()
) -> str | None:
    """Why an expensive node of `match` would stay beside its replacement, None if none does.

    A node that makes one of the pattern's outputs may stay: the rewrite knows that its value is wanted.
    """
    removed, replaced, new_nodes = set(removed), set(replaced), set(new_nodes)
    for node in match.nodes:
        if node in removed or not operators.is_expensive(node):
            continue
        if not any(output in match.outputs for output in node.outputs):
            reason = _reason_to_stay(node, match, replaced, new_nodes)
            return f"{node.op_type} {node_text(node)!r} would be computed twice: {reason}"
    return None


def _kept_beside(candidate: Candidate) -> str | None:
    """Why an expensive node would stay although the replacement makes what it was wanted for, None if none does."""
    removed, replaced = set(candidate.removed), set(candidate.outputs)
    for node in dict.fromkeys(value.producer() for value in candidate.outputs):
        if node not in removed and operators.is_expensive(node):
            reason = _reason_to_stay(node, candidate.match, replaced, set(candidate.new_nodes))
            return f"{node.op_type} {node_text(node)!r} would be computed twice: {reason}"
    return None


def _reason_to_stay(node: ir.Node, match: Match, replaced: set[ir.Value], new_nodes: set[ir.Node]) -> str:
    """Who needs `node`: a user of its own or of a matched node that it feeds."""
    if node.graph is not match.root.graph:
        return "it lies in an outer graph"
    matched = set(match.nodes)
    reached, stack = {node}, [node]
    while stack:
        for output in stack.pop().outputs:
            if output in replaced:
                continue
            if output.is_graph_output():
                return f"{output.name!r} is also a graph output"
            for use in output.uses():
                if use.node in new_nodes:
                    return "the new node reads it too"
                if use.node not in matched:
                    return f"{output.name!r} is also used by {use.node.op_type} {node_text(use.node)!r}"
                if use.node not in reached:
                    reached.add(use.node)
                    stack.append(use.node)
    raise AssertionError(f"{node_text(node)} stays in the graph for no reason")


def obstacle(candidate: Candidate, order: Order) -> str | None:
    """Why the replacement must not be made: it would compute something dear twice, or read its own output."""
    for value in candidate.outputs:
        if value.producer() is None:
            return f"{value.name!r} is an input or constant of the model and cannot be replaced"
        if value.producer().graph is not candidate.match.root.graph:
            return "the outputs lie in different graphs"
    reason = computed_twice(candidate.match, candidate.removed, candidate.outputs, candidate.new_nodes)
    reason = reason or _kept_beside(candidate)
    if reason is not None:
        return reason
    if order.depend_on(_external_inputs(candidate), set(candidate.outputs), candidate.match.root.graph):
        return "an input of the new node is computed from one of the outputs it replaces"
    return None


def _external_inputs(candidate: Candidate) -> list[ir.Value]:
    new = set(candidate.new_nodes)
    inputs = {value: None for node in candidate.new_nodes for value in node.inputs if value is not None}
    return [value for value in (*inputs, *candidate.new_outputs) if value.producer() not in new]


class Names:
    """Hands out names that no node or value of the model has."""

    def __init__(self, order: Order) -> None:
        self._taken: set[str | None] = {None, ""}
        for graph in order.graphs:
            self._taken.update(value.name for value in (*graph.inputs, *graph.initializers.values()))
            for node in graph:
                self._taken.add(node.name)
                self._taken.update(value.name for value in node.outputs)

    def unique(self, name: str) -> str:
        """`name`, or `name_1`, `name_2`, ... whichever is free."""
        candidate, count = name, 0
        while candidate in self._taken:
            count += 1
            candidate = f"{name}_{count}"
        self._taken.add(candidate)
        return candidate


def scope(nodes: Iterable[ir.Node]) -> str:
    """The longest path that `nodes` share: `/model/layers.0/self_attn/`, or nothing."""
    paths = [path for path in map(_path, nodes) if path]
    shared: list[str] = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return "".join(f"{part}/" for part in shared)


def _path(node: ir.Node) -> list[str]:
    """The modules a node lies in: part of its name (TorchScript exporter), or in its metadata (dynamo exporter)."""
    if node.name and "/" in node.name:
        return node.name.split("/")[:-1]
    scopes = re.findall("'([^']*)'", node.metadata_props.get("pkg.torch.onnx.name_scopes", ""))[:-1]
    return [inner.removeprefix(outer).lstrip(".") for outer, inner in itertools.pairwise(["", *scopes])]


def splice(candidate: Candidate, model: ir.Model, order: Order, names: Names) -> None:
    """Apply a candidate: insert, reconnect, name, remove what became dead."""
    prefix = _home(candidate)
    free = {node.name for node in candidate.removed}
    for node in candidate.new_nodes:
        name = prefix + node.op_type
        node.name = name if name in free else names.unique(name)
        free.discard(name)
        record_origin(node, candidate.fusion.name, candidate.removed or candidate.nodes)
        for index, value in enumerate(node.outputs):
            value.name = names.unique(f"{node.name}_output_{index}")
        model.graph.opset_imports.setdefault(node.domain, 1)
    for value in candidate.constants:
        value.name = names.unique(value.name or f"{prefix}constant")
        model.graph.initializers.add(value)
    for function in candidate.functions:
        model.functions.setdefault(function.identifier(), function)

    new_outputs = [_own_value(candidate, i, names) for i in range(len(candidate.outputs))]
    order.insert(candidate.new_nodes, _external_inputs(candidate), candidate.outputs)
    removed = set(candidate.removed)
    for old, new in zip(candidate.outputs, new_outputs, strict=True):
        if new.producer() in candidate.new_nodes:
            new.type, new.shape, name = old.type, old.shape, old.name
            old.name = None if old.producer() in removed else names.unique(f"{name}_unfused")
            new.name = name
        old.replace_all_uses_with(new, replace_graph_outputs=True)
    remove_dead(candidate.removed, order)


def _home(candidate: Candidate) -> str:
    """The path under which the new nodes get their names."""
    removed = candidate.removed
    if candidate.fusion.stage == "block":  # a norm may add what the layer before left: it lies in neither
        removed = [node for node in removed if node.op_type not in NORMS] or removed
    return scope(removed) or scope(candidate.nodes)


def _own_value(candidate: Candidate, index: int, names: Names) -> ir.Value:
    """The value to put in place of output `index`, of a new node's own where it takes over a graph output's name."""
    value, old = candidate.new_outputs[index], candidate.outputs[index]
    is_shared = value in candidate.new_outputs[:index]
    if value.producer() in candidate.new_nodes and not is_shared:
        return value
    if not old.is_graph_output():
        return value
    copy = ir.Node(operators.STANDARD, "Identity", [value], name=names.unique(f"{old.name}_copy"))
    candidate.new_nodes.append(copy)
    return copy.outputs[0]


def record_origin(node: ir.Node, fusion: str, replaced: Iterable[ir.Node]) -> None:
    """Write into a new node's metadata what it was made of, and by what."""
    node.metadata_props["onnxfuse.fusion"] = fusion
    node.metadata_props["onnxfuse.replaced"] = _replaced_text(replaced)


def _replaced_text(nodes: Iterable[ir.Node]) -> str:
    """Names of the original nodes; those that an earlier fusion replaced are listed in its place."""
    found: dict[str, None] = {}
    for node in nodes:
        earlier = node.metadata_props.get("onnxfuse.replaced")
        found.update(dict.fromkeys(earlier.split(",") if earlier else [node_text(node)]))
    text = ",".join(found)
    if len(text) <= REPLACED_TEXT_LIMIT:
        return text
    return f"{text[:REPLACED_TEXT_LIMIT].rpartition(',')[0]},... ({len(found)} nodes)"


def remove_dead(nodes: Iterable[ir.Node], order: Order) -> None:
    """Remove `nodes`, then whatever only they needed."""
    stack = list(nodes)
    dead = dict.fromkeys(stack)
    while stack:
        node = stack.pop()
        inputs = order.inputs_of(node)
        _detach(node, order)
        for value in inputs:
            _remove_if_unused(value, stack, dead)
    for graph in {node.graph for node in dead}:  # at once: every removal looks at all outputs of the graph
        graph.remove([node for node in dead if node.graph is graph])


def _remove_if_unused(value: ir.Value, stack: list[ir.Node], dead: dict[ir.Node, None]) -> None:
    producer = value.producer()
    if producer is not None:
        unused = all(not output.uses() and not output.is_graph_output() for output in producer.outputs)
        if unused and producer not in dead and producer.graph is not None:
            dead[producer] = None
            stack.append(producer)
    elif value.is_initializer() and not value.uses() and not value.is_graph_output() and not value.is_graph_input():
        value.graph.initializers.pop(value.name)


def _detach(node: ir.Node, order: Order) -> None:
    node.resize_inputs(0)
    for graph in order.inner.get(node, ()):
        for inner in graph:
            _detach(inner, order)
