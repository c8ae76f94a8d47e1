"""The order of nodes: who comes before whom, where a new node may stand, who depends on whom, where operators are."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence, Set

import onnx_ir as ir

from onnxfuse.operators import OpId


def subgraphs(node: ir.Node) -> Sequence[ir.Graph]:
    """The graphs in the attributes of an If, Loop or Scan."""
    found: list[ir.Graph] = []
    for attribute in node.attributes.data.values():  # the dict itself: a UserDict's view is ten times slower
        if attribute.type == ir.AttributeType.GRAPH:
            found.append(attribute.value)
        elif attribute.type == ir.AttributeType.GRAPHS:
            found.extend(attribute.value)
    return found


def all_nodes(graph: ir.Graph) -> Iterator[ir.Node]:
    """The nodes of `graph`, each followed by those of its subgraphs."""
    for node in graph:
        yield node
        for inner in subgraphs(node):
            yield from all_nodes(inner)


def is_sorted(graph: ir.Graph) -> bool:
    """Whether every node, in subgraphs too, comes after those whose outputs it reads."""
    before: set[ir.Node | None] = {None}
    for node in all_nodes(graph):
        for value in node.inputs:
            if value is not None and value.producer() not in before:
                return False
        before.add(node)
    return True


class Places:
    """Nodes by their operator."""

    def __init__(self, nodes: Iterable[ir.Node]) -> None:
        self._by_operator: dict[OpId, list[tuple[int, ir.Node]]] = defaultdict(list)
        for position, node in enumerate(nodes):
            self._by_operator[node.domain, node.op_type].append((position, node))

    @property
    def operators(self) -> Set[OpId]:
        """Those that are there."""
        return self._by_operator.keys()

    def of(self, operators: Iterable[OpId]) -> list[ir.Node]:
        """The nodes of these operators, in the order given."""
        found = [self._by_operator[operator] for operator in operators if operator in self._by_operator]
        return [node for _, node in (found[0] if len(found) == 1 else sorted(itertools.chain(*found)))]


class Order:
    """Positions of all nodes of a model; sorts graphs whose nodes are not in topological order."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self.owners: dict[ir.Graph, ir.Node] = {}
        self.inner: dict[ir.Node, list[ir.Graph]] = defaultdict(list)  # the subgraphs of those nodes that have any
        self.graphs: list[ir.Graph] = []
        self.positions: dict[ir.Node, int] = {}
        self._enter(model.graph)
        if not is_sorted(model.graph):
            model.graph.sort()
            for graph in self.graphs:
                self._number(graph)

    def _enter(self, graph: ir.Graph) -> None:
        self.graphs.append(graph)
        self._number(graph)
        for node in graph:
            for inner in subgraphs(node):
                self.owners[inner] = node
                self.inner[node].append(inner)
                self._enter(inner)

    def _number(self, graph: ir.Graph) -> None:
        self.positions.update((node, index) for index, node in enumerate(graph))

    def consumers_first(self) -> list[ir.Node]:
        """All nodes, of inner graphs too, every node after those that read its outputs."""
        found: list[ir.Node] = []

        def visit(graph: ir.Graph) -> None:
            for node in reversed(graph):
                found.append(node)
                if node in self.inner:
                    for inner in self.inner[node]:
                        visit(inner)

        visit(self.model.graph)
        return found

    def sorted_consumers_first(self, nodes: Iterable[ir.Node]) -> list[ir.Node]:
        """`nodes` in the order of `consumers_first`; of nodes made together, in the order given, the last first."""
        return sorted(reversed(list(nodes)), key=self._place)

    def _place(self, node: ir.Node) -> tuple[int, ...]:
        place = (-self.positions[node],)
        owner = self.owners.get(node.graph)
        return place if owner is None else (*self._place(owner), *place)

    def position_in(self, graph: ir.Graph, node: ir.Node) -> int | None:
        """Where `node`, or the node of `graph` in whose subgraph it lies, stands; None if in neither."""
        while node.graph is not graph:
            node = self.owners.get(node.graph)
            if node is None:
                return None
        return self.positions[node]

    def inputs_of(self, node: ir.Node) -> list[ir.Value]:
        """The inputs of `node` and all that is read in its subgraphs, their own values too."""
        found = [value for value in node.inputs if value is not None]
        if node in self.inner:
            for graph in self.inner[node]:
                found.extend(graph.outputs)
                for inner in graph:
                    found.extend(self.inputs_of(inner))
        return found

    def depend_on(self, inputs: Iterable[ir.Value], targets: set[ir.Value], graph: ir.Graph) -> bool:
        """Whether any of `inputs` is one of `targets`, all made in `graph`, or is computed from one."""
        earliest = min(self.positions[value.producer()] for value in targets)
        seen: set[ir.Value] = set()
        stack = list(inputs)
        while stack:
            value = stack.pop()
            if value in targets:
                return True
            producer = value.producer()
            if value in seen or producer is None:
                continue
            seen.add(value)
            position = self.position_in(graph, producer)  # None: an outer graph, which cannot read an inner one
            if position is not None and position >= earliest:
                stack.extend(self.inputs_of(producer))
        return False

    def insert(self, nodes: Sequence[ir.Node], inputs: Iterable[ir.Value], outputs: Sequence[ir.Value]) -> None:
        """Put `nodes` after the producers of `inputs` and before all users of `outputs`, which they replace.

        Users that stand too early move behind them; the caller has made sure that `inputs` do not depend on them.
        """
        first = min((value.producer() for value in outputs), key=self.positions.__getitem__)
        graph = first.graph
        producers = {value.producer() for value in inputs}
        before = [node for node in producers if node is not None and node.graph is graph]
        if all(self.positions[node] < self.positions[first] for node in before):
            graph.insert_before(first, nodes)
            self.positions.update(dict.fromkeys(nodes, self.positions[first]))
            return
        self._number(graph)  # nodes inserted together shared a position until now
        last = max(before, key=self.positions.__getitem__)
        early = self._dependents(outputs, graph, self.positions[last])
        graph.remove(early)
        graph.insert_after(last, [*nodes, *early])
        self._number(graph)

    def _dependents(self, values: Sequence[ir.Value], graph: ir.Graph, until: int) -> list[ir.Node]:
        found: set[ir.Node] = set()
        stack = list(values)
        while stack:
            for use in stack.pop().uses():
                node = use.node
                while node is not None and node.graph is not graph:
                    node = self.owners.get(node.graph)
                if node is not None and node not in found and self.positions[node] <= until:
                    found.add(node)
                    stack.extend(node.outputs)
        return sorted(found, key=self.positions.__getitem__)
