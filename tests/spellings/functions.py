"""Parts of a graph as model-local functions, as torch.onnx and other tools write modules."""

from __future__ import annotations

import onnx
from onnx import helper

from spellings.draft import Draft

DOMAIN = "modules"
CRASHES = {"SimplifiedLayerNormalization"}  # in a function it ends ONNX Runtime 1.31 with a segmentation fault
PASSED_ON = {onnx.AttributeProto.INT, onnx.AttributeProto.FLOAT, onnx.AttributeProto.INTS}


def outlined(w: Draft) -> None:
    """Put some of the case's nodes into a function; now and then a part of a graph with a function into another."""
    for _ in range(w.pick(0, 0, 0, 1, 2)):
        first, end = sorted(w.random.sample(range(len(w.nodes) + 1), 2))
        if not any(node.op_type in CRASHES for node in w.nodes[first:end]):
            _outline(w, first, end)


def _outline(w: Draft, first: int, end: int) -> None:
    inner, rest = w.nodes[first:end], [*w.nodes[:first], *w.nodes[end:]]
    made = [name for node in inner for name in node.output if name]
    read = dict.fromkeys(name for node in inner for name in node.input if name and name not in made)
    wanted = {name for node in rest for name in node.input} | {value.name for value in w.outputs}
    outputs = [name for name in made if name in wanted]
    inner = [onnx.NodeProto.FromString(node.SerializeToString()) for node in inner]
    attributes = _lifted(w, inner)
    opsets = [helper.make_opsetid("", w.opset), helper.make_opsetid("com.microsoft", 1), helper.make_opsetid(DOMAIN, 1)]
    name = w.name("part").replace("/", "_")
    w.functions.append(helper.make_function(DOMAIN, name, [*read], outputs, inner, opsets, [*attributes]))
    call = helper.make_node(name, [*read], outputs, name=w.name("node_call"), domain=DOMAIN)
    call.attribute.extend(attributes.values())
    w.nodes[first:end] = [call]


def _lifted(w: Draft, nodes: list[onnx.NodeProto]) -> dict[str, onnx.AttributeProto]:
    """Some of the nodes' attributes become the function's: what the call has to give."""
    found = {}
    for node in nodes:
        for attribute in node.attribute:
            if attribute.type in PASSED_ON and not attribute.ref_attr_name and w.coin(0.2):
                given = onnx.AttributeProto.FromString(attribute.SerializeToString())
                given.name = f"{attribute.name}_{len(found)}"
                found[given.name] = given
                kind = attribute.type
                name = attribute.name
                attribute.Clear()
                attribute.name, attribute.type, attribute.ref_attr_name = name, kind, given.name
    return found
