"""Meaning by evaluation: the small subgraph behind a value is run on a few sizes.

Masks and rotary tables are built in as many ways as there are exporters; what they are shows in their values. The
subgraph is cut where the symbolic sizes tell what a value holds, so it never reaches into the network itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import onnx_ir as ir

from onnxfuse import dims
from onnxfuse.facts import Facts
from onnxfuse.verify.sessions import Session
from onnxfuse.verify.slices import Slice

NODE_LIMIT = 400  # a mask of the wordiest exporter takes about 120 nodes
WIDENED = {ir.DataType.BFLOAT16: ir.DataType.FLOAT}  # for which ONNX Runtime has next to no operators on the CPU
CONSTANT_LIMIT = 1 << 24  # elements of a constant inside the subgraph, such as a stored triangular mask


@dataclass
class Cone:
    """Everything that a value is computed from, up to graph inputs and to values known from the sizes."""

    facts: Facts
    target: ir.Value
    nodes: list[ir.Node] = field(default_factory=list)
    inputs: list[ir.Value] = field(default_factory=list)
    known: list[ir.Value] = field(default_factory=list)
    constants: list[ir.Value] = field(default_factory=list)

    def symbols(self) -> set[str]:
        """The names of the sizes that the subgraph's run depends on."""
        found: set[str] = set()
        for value in self.known:
            found.update(*(dims.symbols(e) for e in self.facts.content(value)))
        for value in self.inputs:
            found.update(*(dims.symbols(s) for s in self.facts.shape(value)))
        return found

    def run(self, sizes: Mapping[str, int], feeds: Mapping[str, np.ndarray]) -> np.ndarray:
        """The target's value for these sizes and graph inputs. Raises RuntimeError if the subgraph refuses them."""
        feed = {}
        for value in self.inputs:
            wide = WIDENED.get(self.facts.dtype(value))
            feed[value.name] = feeds[value.name] if wide is None else feeds[value.name].astype(wide.numpy())
        for value in self.known:
            fact = self.facts.fact(value)
            entries = [dims.evaluate(e, sizes) for e in fact.integers()]
            feed[value.name] = np.array(entries, dtype=fact.dtype.numpy()).reshape(fact.content.shape)
        if not self.nodes:
            stored = self.facts.tensor(self.target)
            return feed[self.target.name] if stored is None else stored.numpy()
        try:
            return self._session.run(feed)[self.target.name]
        except Exception as error:  # ONNX Runtime raises its own types for shapes that do not fit together
            raise RuntimeError(f"{self.target.name!r} cannot be evaluated: {error}") from error

    @cached_property
    def _session(self) -> Session:
        piece = Slice(self.facts, (self.target,), self.nodes, self.inputs, self.known, self.constants)
        return Session(piece.model((), WIDENED), threads=1)


def cone(target: ir.Value, facts: Facts) -> Cone | None:
    """The subgraph behind `target`, or None where it is not small: it holds weights, runs a subgraph, or is unknown."""
    found = Cone(facts, target)
    seen: set[ir.Value] = set()
    stack: list[tuple[ir.Value, bool]] = [(target, False)]
    while stack:
        value, done = stack.pop()
        node = value.producer()
        if done:
            if node not in found.nodes:
                found.nodes.append(node)
            continue
        if value in seen:
            continue
        seen.add(value)
        tensor = facts.tensor(value)
        if tensor is not None:
            if tensor.size > CONSTANT_LIMIT:
                return None
            found.constants.append(value)
        elif facts.content(value) is not None:
            found.known.append(value)
        elif node is None:
            if facts.dtype(value) is None or facts.shape(value) is None:
                return None
            found.inputs.append(value)
        else:
            if facts.dtype(value) is None or len(found.nodes) > NODE_LIMIT or len(seen) > 4 * NODE_LIMIT:
                return None
            if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
                return None
            stack.append((value, True))
            stack.extend((i, False) for i in node.inputs if i is not None)
    return found
