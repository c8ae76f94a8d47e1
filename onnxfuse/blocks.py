"""Blocks (`level="block"`): the half of a layer that attends becomes one node, whose body holds fused operators.

    AttentionBlock   norm and projections (Linear) - Attention with rotary embedding and cache - output projection

The norm in front is the layer's own, with the residual addition where that is fused; the sum is then an output of the
block. The other half is one operator already: GatedMLP with its norm. A block is a function of the model and has no
kernel of its own: ONNX Runtime inlines it, and the fused operators inside run as kernels, or as their bodies without
the library. Layers of equal structure share one function. Netron shows block > fused operator > standard operators.

ONNX Runtime does not find a function that is called from within a function if it has an overload. So the operators in
blocks are called without one, and stand for the overload that most blocks need; a block that needs another stays as
its operators. Linear stands twice in a block: there its name says what it has before its projections.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

import onnx_ir as ir
import onnx_ir.passes.common as passes

from onnxfuse.facts import Facts
from onnxfuse.operators import OWN, input_name
from onnxfuse.order import Order
from onnxfuse.soundness import describe
from onnxfuse.splice import NORMS, Names, record_origin, scope
from onnxfuse.verify.slices import attribute_bytes

BLOCK = "AttentionBlock"
NAMES_INSIDE = frozenset({"Linear", "NormLinear", "SkipNormLinear"})  # of Linear
# What may stand between a projection and Attention: it reads one activation, which is its first input.
BETWEEN = ("RotaryEmbedding", "RMSNorm", "Reshape", "Transpose", "Cast", "Squeeze", "Unsqueeze", "Split", "Slice")
AFTER = ("Reshape", "Transpose", "Cast")  # between Attention and the output projection


def group_blocks(model: ir.Model, facts: Facts) -> None:
    """Put what belongs to an Attention into one node, in place; what has another structure stays as it is."""
    order = Order(model)
    halves: list[set[ir.Node]] = []
    for node in model.graph:
        if (node.domain, node.op_type) == (OWN, "Attention"):
            members = _attention_half(node, facts)
            if members is not None and not _leaves_and_returns(members, order):
                halves.append(members)
    called = _without_overload(model, halves)
    names = Names(order)
    for members in halves:
        if all(called[_name_inside(node)] == node.overload for node in members if node.domain == OWN):
            _grouped(model, members, names, facts)
    passes.TopologicalSortPass()(model)


def _without_overload(model: ir.Model, blocks: Iterable[Iterable[ir.Node]]) -> dict[str, str]:
    """By its name inside, the overload of each operator that most blocks call; `model` gets it without an overload."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    operators: dict[str, str] = {}
    for node in itertools.chain.from_iterable(blocks):
        if node.domain == OWN:
            counts[_name_inside(node)][node.overload] += 1
            operators[_name_inside(node)] = node.op_type
    chosen = {name: max(sorted(count), key=count.__getitem__) for name, count in counts.items()}
    for name, overload in sorted(chosen.items()):
        function = model.functions[OWN, operators[name], overload].clone()
        function.name, function.overload = name, ""
        model.functions[function.identifier()] = function
    return chosen


def _name_inside(node: ir.Node) -> str:
    """What an operator is called in a block; the library has kernels under these names, too."""
    if (node.domain, node.op_type) != (OWN, "Linear"):
        return node.op_type
    skip, norm_weight = node.inputs[1:3]
    return f"{'Skip' if skip else ''}{'Norm' if norm_weight else ''}Linear"


def _attention_half(attention: ir.Node, facts: Facts) -> set[ir.Node] | None:
    """All from the norm to the output projection; None where the layer is built in another way."""
    found = {attention}
    fronts: set[ir.Node] = set()  # projections with the norm inside
    sources: set[ir.Value] = set()  # what other projections read
    stack = list(attention.inputs[:3])
    while stack:
        node = stack.pop().producer()
        if node is None:
            return None
        if node in found:
            continue
        found.add(node)
        if _has_norm(node):
            fronts.add(node)
        elif _is_projection(node, facts):
            sources.add(node.inputs[0])
        elif _adds_bias(node, facts):
            stack.extend(value for value in node.inputs if not facts.is_constant(value))
        elif node.op_type in BETWEEN:
            stack.append(node.inputs[0])
        else:
            return None
    if len(sources) + len(fronts) != 1:
        return None
    front = fronts.pop() if fronts else _norm_for(sources.pop(), found)
    if front is None:
        return None
    value = attention.outputs[0]
    while not value.is_graph_output() and len(value.uses()) == 1:
        (use,) = value.uses()
        if use.idx != 0 or not (use.node.op_type in AFTER or _is_projection(use.node, facts)):
            return None
        found.add(use.node)
        if _is_projection(use.node, facts):
            return {front, *found, *_bias_of(use.node, facts)}
        value = use.node.outputs[0]
    return None


def _norm_for(value: ir.Value, readers: set[ir.Node]) -> ir.Node | None:
    """The norm that makes `value` for `readers` alone."""
    norm = value.producer()
    if norm is None or norm.domain != OWN or norm.op_type not in NORMS or value is not norm.outputs[0]:
        return None
    alone = not value.is_graph_output() and all(use.node in readers for use in value.uses())
    return norm if alone else None


def _has_norm(node: ir.Node) -> bool:
    return (node.domain, node.op_type) == (OWN, "Linear") and node.inputs[2] is not None


def _is_projection(node: ir.Node, facts: Facts) -> bool:
    if (node.domain, node.op_type) == (OWN, "Linear"):
        return not _has_norm(node)
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


def _grouped(model: ir.Model, members: set[ir.Node], names: Names, facts: Facts) -> None:
    """Replace `members` by one node and its function."""
    nodes = [node for node in model.graph if node in members]
    for node in nodes:
        describe(node, facts)
    made = {output for node in nodes for output in node.outputs}
    read = dict.fromkeys(value for node in nodes for value in node.inputs if value is not None and value not in made)
    inputs = list(read)
    outputs = [value for node in nodes for value in node.outputs if _is_read_outside(value, members)]
    block = ir.Node(OWN, BLOCK, inputs, num_outputs=len(outputs), overload=_signature(nodes, inputs, outputs))
    own = [node for node in nodes if node.op_type not in NORMS]  # a norm may add what the layer before left
    block.name = names.unique(f"{scope(own)}{BLOCK}")
    record_origin(block, BLOCK, nodes)
    function = _function(block, nodes, inputs, outputs, model.opset_imports, model.functions)
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


def _formal_names(
    nodes: Iterable[ir.Node], values: Iterable[ir.Value], functions: Mapping[ir.OperatorIdentifier, ir.Function]
) -> dict[ir.Value, str]:
    """What the first operator that reads or makes each of `values` calls it; a number tells those of one name apart."""
    wanted = set(values)
    found: dict[ir.Value, str] = {}
    taken: Counter[str] = Counter()
    for node in nodes:
        function = functions.get(node.op_identifier())
        reads = [formal.name for formal in function.inputs] if function else []
        makes = [formal.name for formal in function.outputs] if function else []
        reads += [input_name(node.op_type, index) or "input" for index in range(len(reads), len(node.inputs))]
        makes += ["output"] * (len(node.outputs) - len(makes))
        for value, name in zip((*node.inputs, *node.outputs), (*reads, *makes), strict=True):
            if value in wanted and value not in found:
                taken[name] += 1
                found[value] = name if taken[name] == 1 else f"{name}_{taken[name]}"
    return found


def _function(
    block: ir.Node,
    nodes: Iterable[ir.Node],
    inputs: Sequence[ir.Value],
    outputs: Sequence[ir.Value],
    opsets: dict[str, int],
    functions: Mapping[ir.OperatorIdentifier, ir.Function],
) -> ir.Function:
    values: dict[ir.Value | None, ir.Value | None] = {None: None}
    names = _formal_names(nodes, [*inputs, *outputs], functions)
    values |= {value: ir.Value(name=names[value]) for value in inputs}
    body = []
    for position, node in enumerate(nodes):
        copy = ir.Node(
            node.domain,
            _name_inside(node),
            [values[value] for value in node.inputs],
            [ir.Attr(a.name, a.type, a.value) for a in node.attributes.values()],
            num_outputs=len(node.outputs),
            name=f"{node.op_type}_{position}",
        )
        for index, (old, new) in enumerate(zip(node.outputs, copy.outputs, strict=True)):
            new.name = names.get(old, f"{copy.name}_output_{index}")
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
