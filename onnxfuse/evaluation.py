"""Meaning by evaluation: the small subgraph behind a value is run on a few sizes.

Masks and rotary tables are built in as many ways as there are exporters; what they are shows in their values. The
subgraph is cut where the symbolic sizes tell what a value holds, so it never reaches into the network itself.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx_ir as ir

from onnxfuse import dims
from onnxfuse.facts import Facts
from onnxfuse.order import subgraphs
from onnxfuse.verify.sessions import Session
from onnxfuse.verify.slices import Slice, Unsliceable, cut_out

WIDENED = {ir.DataType.BFLOAT16: ir.DataType.FLOAT}  # for which ONNX Runtime has next to no operators on the CPU
CONSTANT_LIMIT = 1 << 24  # elements of a constant inside the subgraph, such as a stored triangular mask


@dataclass
class Cone:
    """What a value is computed from, up to graph inputs, chosen values, and values known from the sizes."""

    target: ir.Value
    piece: Slice

    @property
    def inputs(self) -> list[ir.Value]:
        """The chosen values and graph inputs that the value depends on."""
        return self.piece.inputs

    @property
    def constants(self) -> list[ir.Value]:
        """The constants that the value depends on."""
        return self.piece.constants

    def symbols(self) -> set[str]:
        """The names of the sizes that the subgraph's run depends on."""
        found: set[str] = set()
        for value in self.piece.known:
            found.update(*(dims.symbols(e) for e in self.piece.facts.content(value)))
        for value in self.inputs:
            found.update(*(dims.symbols(s) for s in self.piece.facts.shape(value)))
        return found

    def run(self, sizes: Mapping[str, int], feeds: Mapping[str, np.ndarray]) -> np.ndarray:
        """The target's value for these sizes and inputs. Raises RuntimeError if the subgraph refuses them."""
        facts, feed = self.piece.facts, {}
        for value in self.inputs:
            wide = WIDENED.get(facts.dtype(value))
            feed[value.name] = feeds[value.name] if wide is None else feeds[value.name].astype(wide.numpy())
        for value in self.piece.known:
            fact = facts.fact(value)
            entries = [dims.evaluate(e, sizes) for e in fact.integers()]
            feed[value.name] = np.array(entries, dtype=fact.dtype.numpy()).reshape(fact.content.shape)
        if not self.piece.nodes:
            stored = facts.tensor(self.target)
            return feed[self.target.name] if stored is None else stored.numpy()
        try:
            return self._session.run(feed)[self.target.name]
        except Exception as error:  # ONNX Runtime raises its own types for shapes that do not fit together
            raise RuntimeError(f"{self.target.name!r} cannot be evaluated: {error}") from error

    @cached_property
    def _session(self) -> Session:
        return Session(self.piece.model((), WIDENED), threads=1)


def cone(target: ir.Value, facts: Facts, sources: Collection[ir.Value] = ()) -> Cone | None:
    """The subgraph behind `target`, down to `sources`.

    None where it is not small: it holds weights, runs a subgraph, or is unknown.
    """
    try:
        piece = cut_out((target,), lambda value: value in sources, facts)
    except Unsliceable:
        return None
    if any(facts.tensor(value).size > CONSTANT_LIMIT for value in piece.constants):
        return None
    if any(facts.dtype(value) is None or facts.shape(value) is None for value in piece.inputs):
        return None
    read = [target, *(value for node in piece.nodes for value in node.inputs if value is not None)]
    if any(facts.dtype(value) is None for value in read) or any(subgraphs(node) for node in piece.nodes):
        return None
    return Cone(target, piece)
