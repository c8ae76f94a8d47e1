"""Cutting a piece out of a graph as a model of its own.

A slice is everything that some values are computed from, down to *leaves*: values that the caller cuts at, graph
inputs, constants, and integers that are known from the symbolic sizes alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
import onnx_ir as ir

from onnxfuse.facts import SMALL, Facts
from onnxfuse.order import subgraphs

NODE_LIMIT = 600  # a mask of the wordiest exporter takes about 120 nodes
IR_VERSION = 10  # the first with function overloads
NUMBERS = (ir.AttributeType.INT, ir.AttributeType.INTS, ir.AttributeType.FLOAT, ir.AttributeType.FLOATS)


class Unsliceable(Exception):
    """The piece cannot be cut out; the message says why."""


@dataclass
class Slice:
    """Nodes in topological order between `leaves` and `outputs`."""

    facts: Facts
    outputs: tuple[ir.Value, ...]
    nodes: list[ir.Node] = field(default_factory=list)
    inputs: list[ir.Value] = field(default_factory=list)  # cut values and graph inputs
    known: list[ir.Value] = field(default_factory=list)  # integers known from the sizes
    constants: list[ir.Value] = field(default_factory=list)

    @property
    def leaves(self) -> tuple[ir.Value, ...]:
        """All values that the slice does not compute."""
        return (*self.inputs, *self.known, *self.constants)

    def model(
        self,
        functions: Iterable[ir.Function],
        widen: Mapping[ir.DataType, ir.DataType] = MappingProxyType({}),
        resize: Callable[[int], int] = int,
        kept: str | None = None,
    ) -> ir.Model:
        """The slice as a model whose inputs are `inputs`, then `known`.

        What has a key of `widen` as dtype is computed in the dtype it maps to, but for operators of the domain `kept`,
        between Casts; `resize` changes the inputs' sizes.

        Raises
        ------
        Unsliceable
            A node has no meaning outside its function, or its subgraph cannot be widened.
        """
        return _Assembly(self, widen, resize, kept).model(functions)


def cut_out(outputs: Sequence[ir.Value], cuts: Callable[[ir.Value], bool], facts: Facts) -> Slice:
    """The slice behind `outputs`, not looking behind values for which `cuts` is true.

    Raises
    ------
    Unsliceable
        It has more than `NODE_LIMIT` nodes, so it is no longer a piece but the network.
    """
    found = Slice(facts, tuple(outputs))
    entered: set[ir.Value] = set()
    placed: set[ir.Node] = set()
    stack: list[tuple[ir.Value, bool]] = [(value, False) for value in reversed(outputs)]
    while stack:
        value, computed = stack.pop()
        node = value.producer()
        if computed:
            if node not in placed:
                placed.add(node)
                found.nodes.append(node)
                if len(placed) > NODE_LIMIT:
                    raise Unsliceable(f"{outputs[0].name!r} depends on more than {NODE_LIMIT} nodes")
            continue
        if value in entered:
            continue
        entered.add(value)
        if cuts(value):
            found.inputs.append(value)
        elif facts.tensor(value) is not None:
            found.constants.append(value)
        elif node is None:
            found.inputs.append(value)
        elif node.inputs and facts.content(value) is not None:
            found.known.append(value)
        else:
            stack.append((value, True))
            stack.extend((read, False) for read in reads(node))
    return found


def reads(node: ir.Node) -> list[ir.Value]:
    """What `node` reads from its own graph and from outer ones, through its subgraphs too."""
    found = [value for value in node.inputs if value is not None]
    for graph in subgraphs(node):
        own = {*graph.inputs, *graph.initializers.values(), *(value for inner in graph for value in inner.outputs)}
        inside = [value for inner in graph for value in reads(inner)]
        found.extend(value for value in (*inside, *graph.outputs) if value not in own)
    return found


def fingerprint(pieces: Iterable[Slice], describe: Callable[[ir.Value, bool], str]) -> str:
    """Equal for slices that compute the same function of equally described leaves, whatever their names are.

    `describe(leaf, kept)` is asked with `kept` for constants whose content counts.
    """
    digest = hashlib.sha256()
    number: dict[ir.Value | None, int] = {None: -1}  # one for all pieces: they share leaves
    for piece in pieces:
        for leaf in piece.leaves:
            number.setdefault(leaf, len(number))
        for leaf in piece.inputs:
            digest.update(f"input {number[leaf]} {describe(leaf, False)};".encode())
        for leaf in piece.known:
            digest.update(f"known {number[leaf]} {piece.facts.content(leaf)} {piece.facts.shape(leaf)};".encode())
        for leaf in piece.constants:
            digest.update(f"constant {number[leaf]} {describe(leaf, True)};".encode())
        for node in piece.nodes:
            for output in node.outputs:
                number[output] = len(number)
            reading = [number.get(value, -2) for value in (*node.inputs, *reads(node))]
            digest.update(f"{node.domain} {node.op_type} {node.overload} {reading} {len(node.outputs)};".encode())
            for attribute in sorted(node.attributes.values(), key=lambda a: a.name):
                digest.update(attribute.name.encode() + attribute_bytes(attribute))
        digest.update(f"{[number[value] for value in piece.outputs]};".encode())
    return digest.hexdigest()


def attribute_bytes(attribute: ir.Attr) -> bytes:
    """The content of an attribute."""
    if attribute.type in NUMBERS and not attribute.is_ref():
        return f"{attribute.type} {np.ravel(attribute.value).tolist()}".encode()
    return ir.to_proto(attribute).SerializeToString(deterministic=True)


def content_text(tensor: ir.TensorProtocol) -> str:
    """A constant by its content: its elements if it is small, else their digest."""
    if tensor.size <= SMALL:
        return f"{tensor.dtype} {tensor.shape} {tensor.tobytes()!r}"
    return f"{tensor.dtype} {tensor.shape} {hashlib.sha256(tensor.tobytes()).hexdigest()}"


def called(nodes: Iterable[ir.Node], functions: Iterable[ir.Function]) -> list[ir.Function]:
    """Those of `functions` that `nodes` call, directly or through one another."""
    by_name = {function.identifier(): function for function in functions}
    found: dict[ir.OperatorIdentifier, ir.Function] = {}
    stack = list(nodes)
    while stack:
        node = stack.pop()
        name = node.op_identifier()
        if name in by_name and name not in found:
            found[name] = by_name[name]
            stack.extend(by_name[name])
        for graph in subgraphs(node):
            stack.extend(graph)
    return list(found.values())


class _Assembly:
    """Clones a slice, so that the graph it was cut from stays as it is."""

    def __init__(
        self,
        piece: Slice,
        widen: Mapping[ir.DataType, ir.DataType],
        resize: Callable[[int], int],
        kept: str | None,
    ) -> None:
        self.piece = piece
        self.widen = widen
        self.resize = resize
        self.kept = kept
        self.values: dict[ir.Value, ir.Value] = {}
        self.nodes: list[ir.Node] = []
        self.clones: list[ir.Graph] = []

    def model(self, functions: Iterable[ir.Function]) -> ir.Model:
        piece, facts = self.piece, self.piece.facts
        inputs = [self._input(value) for value in (*piece.inputs, *piece.known)]
        initializers = [self._initializer(value) for value in piece.constants]
        for node in piece.nodes:
            self._add_between_casts(node) if node.domain == self.kept else self._add(node)
        nodes, outputs = self.nodes, []
        for value in piece.outputs:
            made = self.values[value]
            if made.producer() is None or made in outputs:  # a graph may not return its input, or a value twice
                nodes.append(ir.Node("", "Identity", [made]))
                made = nodes[-1].outputs[0]
                made.name = f"returned:{len(outputs)}"
            outputs.append(made)
        graph = ir.Graph(
            inputs,
            outputs,
            nodes=nodes,
            initializers=initializers,
            opset_imports={"onnxfuse": 1, **facts.model.opset_imports},
            name="slice",
        )
        bodies = called(piece.nodes, functions)
        if self.widen and self.kept is None:
            bodies = [self._function(body) for body in bodies]
        model = ir.Model(graph, ir_version=IR_VERSION, functions=bodies)
        if self.clones:  # they read values of the graph that was cut, by the same names
            model = ir.from_proto(ir.to_proto(model))
            for clone in self.clones:
                for node in ir.traversal.RecursiveGraphIterator(clone):
                    node.resize_inputs(0)
        return model

    def _dtype(self, dtype: ir.DataType) -> ir.DataType:
        return self.widen.get(dtype, dtype)

    def _new(self, value: ir.Value) -> str:
        return value.name or f"unnamed:{len(self.values)}"

    def _input(self, value: ir.Value) -> ir.Value:
        dtype, shape = self.piece.facts.dtype(value), self.piece.facts.shape(value)
        made = ir.Value(name=self._new(value), type=ir.TensorType(self._dtype(dtype)))
        if shape is not None:
            made.shape = ir.Shape([self.resize(size) if isinstance(size, int) else None for size in shape])
        self.values[value] = made
        return made

    def _initializer(self, value: ir.Value) -> ir.Value:
        tensor = self._tensor(self.piece.facts.tensor(value))
        made = ir.Value(
            name=self._new(value), type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape), const_value=tensor
        )
        self.values[value] = made
        return made

    def _tensor(self, tensor: ir.TensorProtocol) -> ir.TensorProtocol:
        wide = self._dtype(tensor.dtype)
        return tensor if wide == tensor.dtype else ir.Tensor(tensor.numpy().astype(wide.numpy()), dtype=wide)

    def _add(self, node: ir.Node) -> None:
        inputs = [None if value is None else self.values[value] for value in node.inputs]
        made = self._copied(node, inputs)
        for old, new in zip(node.outputs, made.outputs, strict=True):
            new.name = self._new(old)
            self.values[old] = new

    def _add_between_casts(self, node: ir.Node) -> None:
        """The node in its own dtypes: what it reads is cast to them, and what it makes is cast back."""
        facts = self.piece.facts
        inputs = [value and self._cast(self.values[value], facts.dtype(value), value) for value in node.inputs]
        made = self._copied(node, inputs)
        for old, new in zip(node.outputs, made.outputs, strict=True):
            name = self._new(old)
            new.name = f"{name}:own"
            self.values[old] = self._cast(new, self._dtype(facts.dtype(old)), old)
            self.values[old].name = name

    def _cast(self, made: ir.Value, to: ir.DataType | None, value: ir.Value) -> ir.Value:
        """`made`, which stands for `value`, as `to`; as it is where its dtype is no other in the slice."""
        if self.piece.facts.dtype(value) not in self.widen:
            return made
        self.nodes.append(ir.node("Cast", [made], {"to": to}))
        self.nodes[-1].outputs[0].name = f"cast:{len(self.nodes)}"
        return self.nodes[-1].outputs[0]

    def _copied(self, node: ir.Node, inputs: Sequence[ir.Value | None]) -> ir.Node:
        made = ir.Node(
            node.domain,
            node.op_type,
            inputs,
            [self._attribute(node, attribute) for attribute in node.attributes.values()],
            overload=node.overload,
            num_outputs=len(node.outputs),
            name=node.name,
        )
        self.nodes.append(made)
        return made

    def _function(self, function: ir.Function) -> ir.Function:
        """The body of an operator that was fused before, computed in the wider dtypes as well."""
        wide = function.clone()
        for node in list(wide):
            for output in node.outputs:
                output.type = None  # the runtime infers it
            for attribute in list(node.attributes.values()):
                if not attribute.is_ref():
                    node.attributes[attribute.name] = self._attribute(node, attribute)
            if not node.attributes.keys().isdisjoint(("value_float", "value_floats")):
                self._widen(node)
        return wide

    def _widen(self, constant: ir.Node) -> None:
        """Let the readers of a float32 Constant, which may be one of the operator's attributes, read it widened."""
        to = self.widen.get(ir.DataType.FLOAT)
        if to is not None:
            (value,) = constant.outputs
            cast = ir.node("Cast", [value], {"to": to}, name=f"{value.name}/Cast")
            value.replace_all_uses_with(cast.outputs[0])
            cast.replace_input_with(0, value)
            constant.graph.insert_after(constant, cast)

    def _attribute(self, node: ir.Node, attribute: ir.Attr) -> ir.Attr:
        if attribute.type == ir.AttributeType.GRAPH:
            if self.widen:
                raise Unsliceable(f"{node.op_type} {node.name!r} has a subgraph, which is not widened")
            self.clones.append(attribute.value.clone(allow_outer_scope_values=True))
            return ir.AttrGraph(attribute.name, self.clones[-1])
        if attribute.is_ref():
            raise Unsliceable(f"{node.op_type} {node.name!r} belongs to a function")
        if attribute.type == ir.AttributeType.TENSOR:
            return ir.AttrTensor(attribute.name, self._tensor(attribute.value))
        if attribute.type == ir.AttributeType.INT and attribute.name in ("to", "dtype", "output_dtype", "stash_type"):
            return ir.AttrInt64(attribute.name, int(self.widen.get(attribute.value, attribute.value)))
        return attribute
