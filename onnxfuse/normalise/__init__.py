"""Normalisation: exporter noise goes away before any pattern is tried, so that one pattern covers many spellings.

    functions inlined -> constants lifted -> nodes simplified, producers first -> duplicates merged -> dead code out

Each simplification keeps every value: it removes what does nothing (simplify.py), computes what is constant
(constants.py), takes the branch of an If that is always taken (branches.py), moves what is stacked once (stacking.py).
"""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as passes

from onnxfuse.facts import Facts
from onnxfuse.normalise.duplicates import merge_constants, merge_duplicates, merge_tables
from onnxfuse.normalise.lifting import lift_constants
from onnxfuse.normalise.sweep import sweep
from onnxfuse.operators import OWN
from onnxfuse.order import is_sorted


def normalise(model: ir.Model) -> Facts:
    """Simplify `model` in place without changing what it computes, and return the facts about its values."""
    foreign = any(domain != OWN for domain, _, _ in model.functions)
    if foreign or not is_sorted(model.graph):
        passes.TopologicalSortPass()(model)
    if foreign:
        passes.InlinePass(criteria=lambda function: function.domain != OWN)(model)
    facts = Facts(model)
    lift_constants(facts)
    _simplified(model, facts, canonical=True)
    return facts


def tidy(model: ir.Model, facts: Facts) -> None:
    """Simplify what the fusions left: the layout changes around a fused operator cancel against its neighbours'."""
    _simplified(model, facts, canonical=False)


def _simplified(model: ir.Model, facts: Facts, *, canonical: bool) -> None:
    sweep(model.graph, facts, canonical=canonical)
    passes.RemoveUnusedNodesPass()(model)
    merge_constants(facts)
    merge_tables(facts)
    merge_duplicates(facts)


__all__ = ["normalise", "tidy"]
