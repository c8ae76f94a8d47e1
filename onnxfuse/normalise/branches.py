"""An If whose condition follows from the shapes is replaced by the branch that is always taken."""

from __future__ import annotations

import onnx_ir as ir

from onnxfuse.normalise.sweep import Site, replace, simplifies


@simplifies("If")
def known_branch(node: ir.Node, site: Site) -> ir.Value | None:
    """TorchScript of old torch writes `squeeze` as an If on whether the size is one."""
    condition = site.facts.constant(node.inputs[0])
    if condition is None:
        return None
    branch: ir.Graph = node.attributes["then_branch" if condition.reshape(-1)[0] else "else_branch"].value
    results = list(branch.outputs)
    if any(r.producer() is None or r.producer().graph is not branch for r in results):
        return None  # a branch that hands through an outer value or a constant
    if len(results) > 1 and any(o.is_graph_output() for o in node.outputs):
        return None
    for initializer in list(branch.initializers.values()):
        del branch.initializers[initializer.name]
        initializer.name = site.fresh_name(initializer.name)
        site.facts.model.graph.initializers.add(initializer)
    branch.outputs.clear()
    graph = node.graph
    for inner in list(branch):
        branch.remove(inner)
        inner.name = inner.name and site.fresh_name(f"{node.name}/{inner.name}")
        for output in inner.outputs:
            output.name = site.fresh_name(output.name)
        graph.insert_before(node, inner)
        site.queue.append(inner)
    for output, result in zip(list(node.outputs)[1:], results[1:], strict=True):
        replace(output, result, site.facts)
    return results[0]
