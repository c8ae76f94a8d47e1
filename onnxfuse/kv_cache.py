"""The shared KV cache: past and present become one buffer that is updated in place (`kv_cache="shared"`).

    concat   past [B, K, P, D]      present [B, K, P + S, D]      every step copies the cache
    shared   past [B, K, M, D]      present [B, K, M, D]          bound to the same memory, M rows of room

attention_mask [B, T] tells the length: L is one past the last token that it shows in any batch. The new keys and values
are written at rows L - S .. L - 1, the rows from L on are not read. This is what ONNX Runtime GenAI calls
`past_present_share_buffer`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes

from onnxfuse.builder import Builder
from onnxfuse.custom_ops.functions import attach
from onnxfuse.errors import UsageError
from onnxfuse.facts import Facts
from onnxfuse.heads import BIAS, MASK, PAST_KEY, given
from onnxfuse.operators import OWN
from onnxfuse.order import Order
from onnxfuse.soundness import describe
from onnxfuse.splice import Names

METADATA = "onnxfuse.kv_cache"  # of a model with a shared cache: the pasts with their presents, as JSON
ROOM = "max_sequence_length"  # the symbol for M

_LENGTH_AXIS = 2  # of [B, K, P, D]


def is_shared(model: ir.Model) -> bool:
    """Whether `model` has a shared cache."""
    return METADATA in model.metadata_props


def caches(model: ir.Model) -> dict[str, str]:
    """The inputs of `model` that are shared caches, each with the output that is its present."""
    return json.loads(model.metadata_props.get(METADATA, "{}"))


def share_cache(model: ir.Model, facts: Facts) -> None:
    """Give the fused `model` a shared cache, in place; one that has it stays as it is.

    Raises
    ------
    UsageError
        An Attention has no cache of its own, or something else than it depends on the length of the cache.
    """
    if is_shared(model):
        return
    nodes = list(_with_past(model.graph))
    inside = next(_with_past(ir.traversal.RecursiveGraphIterator(model.graph)), None)
    if not nodes and inside is not None:
        raise UsageError(
            f"kv_cache is 'shared', but {inside.name!r} lies inside an If or a loop: export the decoder by itself, not "
            "merged with the one for the first tokens"
        )
    if not nodes:
        raise UsageError(
            "kv_cache is 'shared', but no fused Attention has a past: was the model exported with a cache?"
        )
    for node in nodes:
        reason = _obstacle(node)
        if reason is not None:
            raise UsageError(f"kv_cache is 'shared', but {node.name!r} {reason}")
    masks = {node.inputs[MASK] for node in nodes}
    if len(masks) > 1:
        names = ", ".join(sorted(repr(mask.name) for mask in masks))
        raise UsageError(f"kv_cache is 'shared', but the layers have different padding masks: {names}")
    _measure_by_the_mask(model, nodes, masks.pop(), facts)
    for node in nodes:
        describe(node, facts)
        for value in (*node.inputs[PAST_KEY:MASK], *node.outputs[1:]):
            value.shape = ir.Shape([*value.shape[:_LENGTH_AXIS], ROOM, *value.shape[_LENGTH_AXIS + 1 :]])
        node.attributes["shared_cache"] = ir.AttrInt64("shared_cache", 1)
        attach(node, model)
    pairs = (pair for node in nodes for pair in zip(node.inputs[PAST_KEY:MASK], node.outputs[1:3], strict=True))
    model.metadata_props[METADATA] = json.dumps({past.name: present.name for past, present in pairs})


def _with_past(nodes: Iterable[ir.Node]) -> Iterator[ir.Node]:
    for node in nodes:
        is_attention = (node.domain, node.op_type) == (OWN, "Attention")
        if is_attention and given(node, PAST_KEY) is not None:
            yield node


def _obstacle(node: ir.Node) -> str | None:
    """Why the cache of an Attention cannot be shared."""
    pasts, presents = node.inputs[PAST_KEY:MASK], node.outputs[1:3]
    if node.attributes.get_int("past_rows", 0):
        return "has a cache of rows [B, P, K, D]: expected [B, K, P, D]"
    if given(node, MASK) is None:
        return "has no padding mask [B, L], which is to tell the length"
    if given(node, BIAS) is not None:
        return f"adds {node.inputs[BIAS].name!r} to the scores, whose shape is made for a cache that grows"
    for past in pasts:
        if not past.is_graph_input():
            return f"computes its past {past.name!r}: expected an input of the model"
        if isinstance(past.shape[_LENGTH_AXIS], int):
            return f"has a past {past.name!r} of the fixed length {past.shape[_LENGTH_AXIS]}: expected a symbolic size"
        strangers = [use.node for use in past.uses() if use.node is not node and use.node.op_type != "Shape"]
        if strangers:
            return f"shares its past {past.name!r} with {strangers[0].op_type} {strangers[0].name!r}"
    if len(presents) < 2 or not all(present.is_graph_output() for present in presents):
        return "keeps its present to itself: expected outputs of the model"
    read = next((use.node for present in presents for use in present.uses()), None)
    return None if read is None else f"has a present that {read.op_type} {read.name!r} reads"


def _measure_by_the_mask(model: ir.Model, nodes: list[ir.Node], mask: ir.Value, facts: Facts) -> None:
    """Let whatever asks for a past's length get L - S instead of the room that the buffer has."""
    pasts = dict.fromkeys(past for node in nodes for past in node.inputs[PAST_KEY:MASK])
    asking = [use.node for past in pasts for use in past.uses() if use.node.op_type == "Shape"]
    if not asking:
        return
    builder = Builder()
    new = builder.onnx
    one_past_each = new.Range(np.array(1), new.Add(new.Gather(new.Shape(mask), np.array(1)), np.array(1)), np.array(1))
    shown = new.Mul(new.Cast(new.Cast(mask, to="bool"), to="int64"), one_past_each)
    padded = new.Concat(new.Reshape(shown, np.array([-1])), np.array([0]), axis=0)  # a maximum needs an element
    past = new.Sub(new.ReduceMax(padded, keepdims=0), _prompt_length(new, nodes[0], facts))
    for shape in asking:
        sizes, readers = shape.outputs[0], list(shape.outputs[0].uses())
        start, end = shape.attributes.get_int("start", 0), shape.attributes.get_int("end", 4)
        is_length = np.array([axis == _LENGTH_AXIS for axis in range(4)][start:end])
        answer = new.Where(is_length, past, sizes)
        for reader in readers:
            reader.node.replace_input_with(reader.idx, answer)
    names = Names(Order(model))
    for constant in builder.constants:
        constant.name = names.unique("kv_cache/constant")
        model.graph.initializers.add(constant)
    for node in builder.nodes:
        node.name = node.outputs[0].name = names.unique(f"kv_cache/{node.op_type}")
    model.graph.extend(builder.nodes)
    passes.TopologicalSortPass()(model)


def _prompt_length(new: Builder, node: ir.Node, facts: Facts) -> ir.Value:
    """S, the number of new tokens, as a scalar: from the inputs, since positions are made before any layer runs."""
    q = facts.shape(node.inputs[0])
    length = q[-2]
    if isinstance(length, int):
        return new.constant(np.array(length))
    for value in facts.model.graph.inputs:
        shape = facts.shape(value) or ()
        if length in shape and value not in node.inputs[PAST_KEY:]:
            return new.Gather(new.Shape(value), np.array(shape.index(length)))
    raise UsageError(f"kv_cache is 'shared', but no input of the model has the length of the prompt, {length}")
