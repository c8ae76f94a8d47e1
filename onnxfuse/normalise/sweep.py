"""One sweep over a graph, producers first: every node is simplified until no rule applies to it."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from onnxfuse.dims import Size
from onnxfuse.facts import Facts
from onnxfuse.fusion import node_text
from onnxfuse.order import all_nodes, subgraphs
from onnxfuse.shapes import Shape
from onnxfuse.verify.interface import Interface

Rule = Callable[[ir.Node, "Site"], "ir.Value | None"]
RULES: dict[str, list[Rule]] = {}
NEW_LIMIT = 2000  # nodes simplified in front of one
FIXPOINT_LIMIT = 20  # simplifications of one node; the canonical form may take a node more, never one for ever


class SimplificationLoop(Exception):
    """Rules that undo each other."""


def simplifies(*op_types: str) -> Callable[[Rule], Rule]:
    """Register a rule for nodes of these types ("domain.Type" outside ai.onnx; "*": all of ai.onnx).

    It returns a value equal to the node's first output, or None where it has nothing to say.

    A rule may also change the node's inputs and return that very output.
    """

    def register(rule: Rule) -> Rule:
        for op_type in op_types:
            RULES.setdefault(op_type, []).append(rule)
        return rule

    return register


class Site:
    """Where a rule stands: what is known about values, and the means to build new ones in front of `node`."""

    def __init__(self, facts: Facts, canonical: bool) -> None:
        self.facts = facts
        self.canonical = canonical  # whether patterns are matched afterwards
        self.node: ir.Node | None = None
        self.queue: list[ir.Node] = []  # nodes that a rule put in front of the current one
        self.dead: dict[ir.Node, None] = {}  # nodes that read and feed nothing any more; they leave at the end
        self.sizes: dict[tuple, ir.Value] = {}  # the value that holds these symbolic integers, by dtype and content
        self._constants: dict[tuple, ir.Value] = {}
        self._names = {v.name for n in all_nodes(facts.model.graph) for v in n.outputs}
        self._names |= {v.name for v in facts.model.graph.inputs} | set(facts.model.graph.initializers)

    @functools.cached_property
    def input_by_shape(self) -> dict[Shape | None, ir.Value]:
        """The first graph input of each shape."""
        return {self.facts.shape(value): value for value in reversed(self.facts.model.graph.inputs)}

    @functools.cached_property
    def input_by_size(self) -> dict[Size, tuple[ir.Value, int]]:
        """The first graph input with an axis of each size, and that axis."""
        found: dict[Size, tuple[ir.Value, int]] = {}
        for value in self.facts.model.graph.inputs:
            for axis, size in enumerate(self.facts.shape(value) or ()):
                found.setdefault(size, (value, axis))
        return found

    @functools.cached_property
    def positions(self) -> set[str]:
        """The graph inputs that hold places in the sequence, counted from zero."""
        return {entry.name for entry in Interface.of(self.facts.model).inputs if entry.role == "positions"}

    def fresh_name(self, base: str) -> str:
        """A value name that the model does not have yet."""
        name, count = base, 0
        while name in self._names:
            count += 1
            name = f"{base}_{count}"
        self._names.add(name)
        return name

    def constant(self, array: np.ndarray | Sequence[int], name: str = "constant") -> ir.Value:
        """An initializer of the main graph with this content; equal contents share one."""
        array = np.asarray(array, dtype=np.int64) if isinstance(array, list | tuple) else array
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = self.initializer(ir.tensor(array), name)
        return self._constants[key]

    def initializer(self, tensor: ir.TensorProtocol, name: str) -> ir.Value:
        """A new initializer of the main graph."""
        value = ir.Value(
            name=self.fresh_name(name), shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor
        )
        tensor.name = value.name
        self.facts.model.graph.initializers.add(value)
        return value

    def op(
        self, op_type: str, *inputs: ir.Value | None, outputs: int = 1, **attributes
    ) -> ir.Value | tuple[ir.Value, ...]:
        """A new ai.onnx node in front of the current one; its only output, or all of them."""
        before = self.node
        name = self.fresh_name(f"{before.outputs[0].name}/{op_type}")
        node = ir.node(op_type, inputs, attributes or None, name=name, num_outputs=outputs)
        node.outputs[0].name = name
        for output in node.outputs[1:]:
            output.name = self.fresh_name(name)
        before.graph.insert_before(before, node)
        self.queue.append(node)
        return tuple(node.outputs) if outputs > 1 else node.outputs[0]

    def bury(self, node: ir.Node) -> bool:
        """Detach `node` if nothing reads it, then what only it read: a rule counts the users of a value.

        What the nodes of its subgraphs read is read no longer either.
        """
        if node in self.dead or any(o.uses() or o.is_graph_output() for o in node.outputs):
            return False
        readers = [node, *(inner for graph in subgraphs(node) for inner in all_nodes(graph))]
        read = dict.fromkeys(value.producer() for reader in readers for value in reader.inputs if value is not None)
        gone = {None, *readers}
        producers = [producer for producer in read if producer not in gone]
        for reader in readers:
            reader.resize_inputs(0)
        self.dead[node] = None
        for producer in producers:
            self.bury(producer)
        return True


def sweep(graph: ir.Graph, facts: Facts, *, canonical: bool) -> None:
    """Simplify every node of `graph` and of its subgraphs in place.

    `canonical`: in the form that patterns expect, even where that takes a node more.
    """
    # the rules register themselves when their modules are imported
    import onnxfuse.normalise.axes
    import onnxfuse.normalise.branches
    import onnxfuse.normalise.canonical
    import onnxfuse.normalise.constants
    import onnxfuse.normalise.einsum
    import onnxfuse.normalise.heads
    import onnxfuse.normalise.layouts
    import onnxfuse.normalise.parts
    import onnxfuse.normalise.signs
    import onnxfuse.normalise.simplify
    import onnxfuse.normalise.stacking  # noqa: F401

    site = Site(facts, canonical)
    _sweep(graph, site)
    by_graph: dict[ir.Graph, list[ir.Node]] = defaultdict(list)
    for node in site.dead:
        by_graph[node.graph].append(node)
    for owner, nodes in by_graph.items():
        owner.remove(nodes)


def _sweep(graph: ir.Graph, site: Site) -> None:
    for node in graph:  # onnx_ir's iteration tolerates insertion and removal
        for inner in subgraphs(node):
            _sweep(inner, site)
        _simplify(node, site)
        for _ in range(NEW_LIMIT):
            if not site.queue:
                break
            _simplify(site.queue.pop(0), site)
        else:
            raise SimplificationLoop(f"{NEW_LIMIT} new nodes in front of {node_text(node)!r} and no end")


@functools.cache
def _rules(domain: str, op_type: str) -> list[Rule]:
    return RULES.get(f"{domain}.{op_type}", []) if domain else RULES["*"] + RULES.get(op_type, [])


def _simplify(node: ir.Node, site: Site) -> None:
    if not node.outputs or node in site.dead:
        return
    own = _rules(node.domain, node.op_type)
    applied: list[str] = []
    while len(applied) < FIXPOINT_LIMIT:
        site.node = node
        for rule in own:
            new = rule(node, site)
            if new is not None:
                applied.append(rule.__name__)
                break
        else:
            return
        if new is node.outputs[0]:
            continue
        if not replace(node.outputs[0], new, site.facts):
            return
        if site.bury(node):
            return
    rules = " and ".join(sorted(set(applied)))
    raise SimplificationLoop(f"{rules} undo each other at {node_text(node)!r}: {len(applied)} simplifications of it")


def replace(old: ir.Value, new: ir.Value, facts: Facts) -> bool:
    """Let `new` stand wherever `old` does, a graph output's name included; False if it can't."""
    if old.is_graph_output():
        outputs = old.graph.outputs
        producer = new.producer()
        if producer is None or new.is_graph_output() or producer.graph is not old.graph:
            return False
        new.name, old.name = old.name, f"{old.name}/replaced"
        new.shape, new.type = old.shape, old.type or new.type
        for index, output in enumerate(outputs):
            if output is old:
                outputs[index] = new
    old.replace_all_uses_with(new)
    return True
