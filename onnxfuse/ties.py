"""Sizes by different names: whether they may be one.

An input's size by another name is another size, which may be 1, where a graph broadcasts and a kernel refuses. But
tokens and their positions are equally many, whatever an exporter calls that; and what shape inference cannot tell says
nothing: a name of its own, or the minimum of what a slice asks for and what there is.
"""

from __future__ import annotations

from onnxfuse import dims
from onnxfuse.dims import Size
from onnxfuse.facts import Facts, declared_size
from onnxfuse.verify.interface import Interface

OF_TOKENS = ("tokens", "positions", "embeddings")  # roles of inputs with a row for each token


def may_be_one(a: Size, b: Size, facts: Facts) -> bool:
    """Whether two sizes are equal as far as the model tells; `a` may be rows that are cut out of a table for `b`."""
    if a == b or dims.is_cut_of(a, b):
        return True
    if isinstance(a, int) or isinstance(b, int):
        return False
    names = facts.memory.setdefault(may_be_one, {})
    if not names:
        names.update(_names(facts))
    if all(size == dims.symbol(name) for size in (a, b) for name in dims.symbols(size)):
        first, second = (names.get(name) for size in (a, b) for name in dims.symbols(size))
        return first == second or None in (first, second)
    atoms = [atom for size in (a, b) for monomial, _ in size.terms for atom in monomial]
    return any(atom.op != "size" or atom.args[0] not in names for atom in atoms)


def interface(facts: Facts) -> Interface:
    """What the model's inputs mean."""
    known = facts.memory.setdefault(interface, {})
    if facts not in known:
        known[facts] = Interface.of(facts.model)
    return known[facts]


def _names(facts: Facts) -> dict[str, str]:
    """The sizes that the inputs name, with one name for those of all tokens."""
    inputs = facts.model.graph.inputs
    declared = [declared_size(size) for value in inputs if value.shape is not None for size in value.shape]
    names = {size: size for size in declared if isinstance(size, str)}
    for entry in interface(facts).inputs:
        if entry.role in OF_TOKENS:
            pairs = zip(entry.dims, entry.axes, strict=True)
            names |= {size: f"{axis}()" for size, axis in pairs if isinstance(size, str) and isinstance(axis, str)}
    return names
