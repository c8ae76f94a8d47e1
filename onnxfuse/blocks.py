"""Blocks (`level="block"`): the fused operators of half a layer become one node, whose body holds them.

    AttentionBlock   norm - projections - rotary embedding - Attention with its cache - output projection
    GatedMLPBlock    norm - GatedMLP

The norm in front is the layer's own, with the residual addition where that is fused (SkipRMSNorm); the sum is then an
output of the block. A block is a function of the model and has no kernel of its own: ONNX Runtime inlines it, and the
fused operators inside run as kernels, or as their bodies without the library. Layers of equal structure share one
function. Netron shows block > fused operator > standard operators.

ONNX Runtime does not find a function that is called from within a function if it has an overload. So the operators in
blocks are called without one, and stand for the overload that most blocks need; a block that needs another stays as
its operators.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable

import onnx_ir as ir
import onnx_ir.passes.common as passes

from onnxfuse.facts import Facts
from onnxfuse.operators import OWN
from onnxfuse.order import Order
from onnxfuse.soundness import describe
from onnxfuse.splice import Names, record_origin, scope
from onnxfuse.verify.slices import attribute_bytes

NORMS = ("RMSNorm", "SkipRMSNorm")
# What may stand between a projection and Attention: it reads one activation, which is its first input.
BETWEEN = ("RotaryEmbedding", "RMSNorm", "Reshape", "Transpose", "Cast", "Squeeze", "Unsqueeze", "Split", "Slice")
AFTER = ("Reshape", "Transpose", "Cast")  # between Attention and the output projection


def group_blocks(model: ir.Model, facts: Facts) -> None:
    """Put each half of a layer into one node, in place; what has another structure stays as it is."""
    order = Order(model)
    halves: list[tuple[str, set[ir.Node]]] = []
    for node in model.graph:
        if node.domain == OWN and node.op_type in ("Attention", "GatedMLP"):
            members = _attention_half(node, facts) if node.op_type == "Attention" else _mlp_half(node)
            if members is not None and not _leaves_and_returns(members, order):
                halves.append((f"{node.op_type}Block", members))
    called = _without_overload(model, [members for _, members in halves])
    names = Names(order)
    for op_type, members in halves:
        if all(called[node.op_type] == node.overload for node in members if node.domain == OWN):
            _grouped(model, op_type, members, names, facts)
    passes.TopologicalSortPass()(model)


def _without_overload(model: ir.Model, blocks: Iterable[Iterable[ir.Node]]) -> dict[str, str]:
    """The overload of each operator that most blocks call, put into `model` as the function without an overload."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for node in itertools.chain.from_iterable(blocks):
        if node.domain == OWN:
            counts[node.op_type][node.overload] += 1
    chosen = {op_type: max(sorted(count), key=count.__getitem__) for op_type, count in counts.items()}
    for op_type, overload in sorted(chosen.items()):
        function = model.functions[OWN, op_type, overload].clone()
        function.overload = ""
        model.functions[function.identifier()] = function
    return chosen


def _mlp_half(mlp: ir.Node) -> set[ir.Node] | None:
    norm = _norm_for(mlp.inputs[0], {mlp})
    return None if norm is None else {mlp, norm}


def _attention_half(attention: ir.Node, facts: Facts) -> set[ir.Node] | None:
    """All from the norm to the output projection; None where the layer is built in another way."""
    found = {attention}
    sources: set[ir.Value] = set()
    stack = list(attention.inputs[:3])
    while stack:
        node = stack.pop().producer()
        if node is None:
            return None
        if node in found:
            continue
        found.add(node)
        if _is_projection(node, facts):
            sources.add(node.inputs[0])
        elif _adds_bias(node, facts):
            stack.extend(value for value in node.inputs if not facts.is_constant(value))
        elif node.op_type in BETWEEN:
            stack.append(node.inputs[0])
        else:
            return None
    if len(sources) != 1:
        return None
    norm = _norm_for(sources.pop(), found)
    if norm is None:
        return None
    value = attention.outputs[0]
    while not value.is_graph_output() and len(value.uses()) == 1:
        (use,) = value.uses()
        if use.idx != 0 or not (use.node.op_type in AFTER or _is_projection(use.node, facts)):
            return None
        found.add(use.node)
        if _is_projection(use.node, facts):
            return {norm, *found, *_bias_of(use.node, facts)}
        value = use.node.outputs[0]
    return None


def _norm_for(value: ir.Value, readers: set[ir.Node]) -> ir.Node | None:
    """The norm that makes `value` for `readers` alone."""
    norm = value.producer()
    if norm is None or norm.domain != OWN or norm.op_type not in NORMS or value is not norm.outputs[0]:
        return None
    alone = not value.is_graph_output() and all(use.node in readers for use in value.uses())
    return norm if alone else None


def _is_projection(node: ir.Node, facts: Facts) -> bool:
    if (node.domain, node.op_type) == (OWN, "Linear"):  # with bfloat16 weights, see onnxfuse.bfloat16
        return facts.is_constant(node.inputs[3])
    return (node.domain, node.op_type) == ("", "MatMul") and facts.is_constant(node.inputs[1])


def _adds_bias(node: ir.Node, facts: Facts) -> bool:
    return (node.domain, node.op_type) == ("", "Add") and sum(map(facts.is_constant, node.inputs)) == 1


def _bias_of(projection: ir.Node, facts: Facts) -> list[ir.Node]:
    """The addition of a bias, if that is all that reads the product."""
    product = projection.outputs[0]
    users = [use.node for use in product.uses()]
    alone = len(users) == 1 and not product.is_graph_output()
    return users if alone and _adds_bias(users[0], facts) else []


def _leaves_and_returns(members: set[ir.Node], order: Order) -> bool:
    """Whether a path from a member to a member goes through other nodes: then they cannot be one node."""
    made = {output for node in members for output in node.outputs}
    read = {value for node in members for value in node.inputs if value is not None}
    return order.depend_on(read - made, made, order.model.graph)


def _grouped(model: ir.Model, op_type: str, members: set[ir.Node], names: Names, facts: Facts) -> None:
    """Replace `members` by one node and its function."""
    nodes = [node for node in model.graph if node in members]
    for node in nodes:
        describe(node, facts)
    made = {output for node in nodes for output in node.outputs}
    read = dict.fromkeys(value for node in nodes for value in node.inputs if value is not None and value not in made)
    inputs = list(read)
    outputs = [value for node in nodes for value in node.outputs if _is_read_outside(value, members)]
    block = ir.Node(OWN, op_type, inputs, num_outputs=len(outputs), overload=_signature(nodes, inputs, outputs))
    own = [node for node in nodes if node.op_type not in NORMS]  # a norm may add what the layer before left
    block.name = names.unique(f"{scope(own)}{op_type}")
    record_origin(block, op_type, nodes)
    function = _function(block, nodes, inputs, outputs, model.opset_imports)
    model.functions.setdefault(function.identifier(), function)
    model.graph.insert_before(nodes[0], block)
    for old, new in zip(outputs, block.outputs, strict=True):
        new.name, new.shape, new.type = old.name, old.shape, old.type
        for index, output in enumerate(model.graph.outputs):
            if output is old:
                model.graph.outputs[index] = new
        old.replace_all_uses_with(new)
    model.graph.remove(nodes, safe=True)


def _is_read_outside(value: ir.Value, members: set[ir.Node]) -> bool:
    return value.is_graph_output() or any(use.node not in members for use in value.uses())


def _signature(nodes: Iterable[ir.Node], inputs: Iterable[ir.Value], outputs: Iterable[ir.Value]) -> str:
    """Equal for nodes that compute the same function of their inputs."""
    number: dict[ir.Value | None, int] = {None: -1} | {value: index for index, value in enumerate(inputs)}
    digest = hashlib.sha256()
    for node in nodes:
        number |= {output: len(number) + index for index, output in enumerate(node.outputs)}
        reading = [number[value] for value in node.inputs]
        digest.update(f"{node.op_identifier()} {reading} {len(node.outputs)};".encode())
        for attribute in sorted(node.attributes.values(), key=lambda a: a.name):
            digest.update(attribute_bytes(attribute))
    digest.update(str([number[value] for value in outputs]).encode())
    return digest.hexdigest()[:16]


def _function(
    block: ir.Node,
    nodes: Iterable[ir.Node],
    inputs: Iterable[ir.Value],
    outputs: Iterable[ir.Value],
    opsets: dict[str, int],
) -> ir.Function:
    values: dict[ir.Value | None, ir.Value | None] = {None: None}
    values |= {value: ir.Value(name=f"input_{index}") for index, value in enumerate(inputs)}
    body = []
    for position, node in enumerate(nodes):
        copy = ir.Node(
            node.domain,
            node.op_type,
            [values[value] for value in node.inputs],
            [ir.Attr(a.name, a.type, a.value) for a in node.attributes.values()],
            num_outputs=len(node.outputs),
            name=f"{node.op_type}_{position}",
        )
        for index, (old, new) in enumerate(zip(node.outputs, copy.outputs, strict=True)):
            new.name = f"{copy.name}_output_{index}"
            values[old] = new
        body.append(copy)
    used = {domain: opsets[domain] for domain in {node.domain for node in body} if domain in opsets}
    graph = ir.Graph(
        [values[value] for value in inputs],
        [values[value] for value in outputs],
        nodes=body,
        opset_imports={OWN: 1, **used},
    )
    return ir.Function(block.domain, block.op_type, block.overload, graph=graph, attributes=[])
