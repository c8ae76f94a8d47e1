"""What is constant is computed: small tensors at once, a weight's transpose when it is written."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from onnxfuse.derived import ComputedTensor
from onnxfuse.normalise.sweep import Site, simplifies

FOLD_LIMIT = 1 << 22  # elements up to which a constant is computed while rewriting; rotary tables are the largest
GROWTH_LIMIT = 1 << 20  # elements of a result that is larger than all it is computed from
# Random operators have no value to fold; a quantised weight is small because it is not folded.
RANDOM = {
    "RandomNormal",
    "RandomUniform",
    "RandomNormalLike",
    "RandomUniformLike",
    "Bernoulli",
    "Multinomial",
    "Dropout",
}
KEPT = RANDOM | {"DequantizeLinear", "Identity"}  # an Identity's input is the constant already
LAZY = {"Transpose", "Cast", "Reshape", "Unsqueeze", "Squeeze", "Slice"}


@simplifies("*")
def known_integers(node: ir.Node, site: Site) -> ir.Value | None:
    """A small integer tensor whose entries follow from the shapes becomes a constant."""
    if len(node.outputs) != 1 or not node.inputs:
        return None
    content = site.facts.constant(node.outputs[0])
    if content is None:
        return None
    return site.constant(content, f"{node.outputs[0].name}/value")


@simplifies("*")
def known_sizes(node: ir.Node, site: Site) -> ir.Value | None:
    """Integers that follow from the model's sizes are computed once: equal ones share the first value that has them."""
    output = node.outputs[0]
    content = site.facts.content(output) if len(node.outputs) == 1 else None
    if not content or node.graph is not site.facts.model.graph or output.is_graph_output():
        return None
    if node.op_type == "Shape":
        return None
    key = (site.facts.dtype(output), site.facts.shape(output), tuple(content))
    first = site.sizes.get(key)
    if first is not None and first is not output and first.producer() not in site.dead:
        return first
    site.sizes[key] = output
    is_size = len(content) == 1 and site.facts.dtype(output) == ir.DataType.INT64
    source = site.input_by_size.get(content[0]) if is_size else None
    if source is None or _reads_input_shape(node):
        return None
    value, axis = source
    site.sizes[key] = site.op("Gather", site.op("Shape", value), site.constant(_index(axis, output, site)), axis=0)
    return site.sizes[key]


@simplifies("Shape")
def shape_of_input(node: ir.Node, site: Site) -> ir.Value | None:
    """The shape of an inner value whose sizes are those of graph inputs is read from these."""
    inner, content = node.inputs[0], site.facts.content(node.outputs[0])
    shape = site.facts.shape(inner)
    if inner.is_graph_input() or not shape or not content or node.graph is not site.facts.model.graph:
        return None
    same = site.input_by_shape.get(shape)
    if same is not None:
        return site.op("Shape", same, **{k: a.value for k, a in node.attributes.items()})
    if not all(isinstance(size, int) or size in site.input_by_size for size in content):
        return None
    if all(use.node.op_type == "Gather" and site.facts.content(use.node.outputs[0]) for use in node.outputs[0].uses()):
        return None  # `known_sizes` replaces what picks from the shape, and nothing reads it any more
    parts = []
    for size in content:
        if isinstance(size, int):
            parts.append(site.constant([size], "size"))
        else:
            value, axis = site.input_by_size[size]
            parts.append(site.op("Gather", site.op("Shape", value), site.constant([axis]), axis=0))
    return parts[0] if len(parts) == 1 else site.op("Concat", *parts, axis=0)


def _reads_input_shape(node: ir.Node) -> bool:
    """Whether the node is Shape(graph input), or Gather(Shape(graph input), i)."""
    source = node.inputs[0]
    if node.op_type == "Gather" and source is not None and source.producer() is not None:
        node = source.producer()
    return node.op_type == "Shape" and node.inputs[0].is_graph_input()


def _index(axis: int, output: ir.Value, site: Site) -> np.ndarray:
    return np.full(site.facts.shape(output), axis, dtype=np.int64)


@simplifies("*")
def folded(node: ir.Node, site: Site) -> ir.Value | None:
    """A node whose inputs are all constants becomes one."""
    if len(node.outputs) != 1 or not node.inputs or node.op_type in KEPT:
        return None
    tensors = []
    for value in node.inputs:
        tensors.append(None if value is None else site.facts.tensor(value))
        if tensors[-1] is None and value is not None:
            return None
    if _has_subgraph(node):
        return None
    read = sum(t.size for t in tensors if t is not None)
    if read <= FOLD_LIMIT and _output_size(node, site) <= max(read, GROWTH_LIMIT):
        if _is_weight(node, tensors):
            return _folded_lazily(node, site)
        return site.initializer(ir.tensor(_evaluate(node, tensors, site.facts.opset)), f"{node.outputs[0].name}/value")
    return _folded_lazily(node, site)


def _has_subgraph(node: ir.Node) -> bool:
    return any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values())


def _output_size(node: ir.Node, site: Site) -> float:
    shape = site.facts.shape(node.outputs[0])
    if shape is None or not all(isinstance(s, int) for s in shape):
        return 0 if shape is not None and len(shape) <= 1 else float("inf")
    return float(np.prod(shape)) if shape else 1


def _is_weight(node: ir.Node, tensors: list) -> bool:
    """A tensor on disk is left there until the model is written."""
    return node.op_type in LAZY and isinstance(tensors[0], ir.ExternalTensor) and tensors[0].size > 4096


def _evaluate(node: ir.Node, tensors: list, opset: int) -> np.ndarray:
    """The node's value, by the ONNX reference implementation."""
    names = ["" if t is None else f"x{i}" for i, t in enumerate(tensors)]
    attributes = [ir.to_proto(a) for a in node.attributes.values()]
    proto = onnx.helper.make_node(node.op_type, names, ["y"])
    proto.attribute.extend(attributes)
    inputs = [
        onnx.helper.make_tensor_value_info(n, int(t.dtype), None) for n, t in zip(names, tensors, strict=True) if n
    ]
    output = onnx.ValueInfoProto(name="y")
    model = onnx.helper.make_model(
        onnx.helper.make_graph([proto], "fold", inputs, [output]),
        opset_imports=[onnx.helper.make_opsetid("", opset)],
    )
    feed = {n: t.numpy() for n, t in zip(names, tensors, strict=True) if n}
    return np.asarray(ReferenceEvaluator(model).run(None, feed)[0])


def _folded_lazily(node: ir.Node, site: Site) -> ir.Value | None:
    """Move a weight's layout change, Cast or Slice into the weight; it is computed when the model is written."""
    weight = node.inputs[0]
    if node.op_type not in LAZY or any(user.op_type != node.op_type for user, _ in weight.uses()):
        return None  # a tied weight would be stored twice
    if node.op_type != "Slice" and len(weight.uses()) != 1:
        return None
    source, output = site.facts.tensor(weight), node.outputs[0]
    dtype, shape = site.facts.dtype(output), site.facts.shape(output)
    if dtype is None or shape is None or not all(isinstance(s, int) for s in shape):
        return None
    operands = [None if v is None else site.facts.tensor(v) for v in node.inputs[1:]]

    def rows(array: np.ndarray, start: int, stop: int) -> np.ndarray:
        return np.array(_moved(node, array, operands, shape)[start:stop], dtype=dtype.numpy(), order="C")

    name = f"{weight.name}/{node.op_type}"
    return site.initializer(ComputedTensor(lambda: source, rows, dtype, shape, name), name)


def _moved(node: ir.Node, array: np.ndarray, operands: list, shape: tuple[int, ...]) -> np.ndarray:
    """A view of the weight as the node moves it; a Cast is left to the caller."""
    match node.op_type:
        case "Transpose":
            return array.transpose(node.attributes["perm"].value if "perm" in node.attributes else None)
        case "Cast":
            return array
        case "Slice":
            starts, ends, axes, steps = (None if t is None else t.numpy().tolist() for t in [*operands, None, None][:4])
            index = [slice(None)] * array.ndim
            axes, steps = axes or range(len(starts)), steps or [1] * len(starts)
            for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
                index[axis] = slice(start, end, step)
            return array[tuple(index)]
        case _:
            return array.reshape(shape)
