"""What is known about a value: dtype, symbolic shape, constant or symbolic content. The only module asked about these.

A rewrite never changes what a value is, so a fact once found holds for as long as the value lives. Equal facts are one
object, so that what an operator makes of them is derived once, not once a layer.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from onnxfuse import dims
from onnxfuse.dims import Size
from onnxfuse.shapes import CONTENT_LIMIT, RULES, UNKNOWN, Call, Fact, Shape, is_followed

RULED_DOMAINS = ("", "com.microsoft", "onnxfuse")  # in others a familiar name may mean anything
SMALL = 4096  # elements up to which a constant's content is read

_CONSTANT_ATTRIBUTES = {
    "value_float": np.float32,
    "value_floats": np.float32,
    "value_int": np.int64,
    "value_ints": np.int64,
}


_NUMBERS = {ir.AttributeType.INT, ir.AttributeType.FLOAT, ir.AttributeType.STRING}
_PLAIN = _NUMBERS | {ir.AttributeType.INTS, ir.AttributeType.FLOATS, ir.AttributeType.STRINGS}


class Facts:
    """Answers questions about the values of one model; an answer may be None ("unknown"), never wrong."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self.opset = model.opset_imports.get("", 1)
        self.memory: dict[object, dict] = {}  # what other modules found out about values, by the function that did
        self._facts: dict[ir.Value, Fact] = {}
        self._contents: dict[ir.Value, np.ndarray] = {}  # of small constants
        self._shared: dict[tuple, Fact] = {}  # the one object for each fact
        self._derived: dict[tuple, list[Fact]] = {}  # what a kind of node makes of its inputs' facts

    def dtype(self, value: ir.Value) -> ir.DataType | None:
        """The element type of `value`."""
        return self.fact(value).dtype

    def shape(self, value: ir.Value) -> Shape | None:
        """One int or symbolic `Dim` a dimension; two dims are equal for every input if they compare equal."""
        return self.fact(value).shape

    def rank(self, value: ir.Value) -> int | None:
        """The number of dimensions."""
        return self.fact(value).rank

    def content(self, value: ir.Value) -> list[Size] | None:
        """The elements of a small integer tensor in terms of the model's symbolic sizes, flat."""
        return self.fact(value).integers()

    def tensor(self, value: ir.Value) -> ir.TensorProtocol | None:
        """The constant that `value` always is, not read: an initializer no input overrides, or a Constant node's."""
        if value.const_value is not None:
            return None if value.is_graph_input() else value.const_value
        producer = value.producer()
        if producer is None or producer.op_type != "Constant" or producer.domain:
            return None
        if "value" in producer.attributes:
            return producer.attributes["value"].value
        for name, dtype in _CONSTANT_ATTRIBUTES.items():
            if name in producer.attributes:
                return ir.tensor(np.array(producer.attributes[name].value, dtype=dtype))
        return None

    def is_constant(self, value: ir.Value) -> bool:
        """Whether `value` is the same in every run (its content is not read)."""
        return self.tensor(value) is not None

    def constant(self, value: ir.Value) -> np.ndarray | None:
        """The content of a small constant, or of an integer tensor whose entries are all known: not to be changed."""
        content = self._contents.get(value)
        if content is not None:
            return content
        fact = self.fact(value)
        tensor = self.tensor(value)
        if tensor is not None:
            if math.prod(fact.shape) <= SMALL:
                self._contents[value] = content = tensor.numpy()
            return content
        entries = fact.integers()
        if entries is None or not all(isinstance(e, int) for e in entries):
            return None
        return fact.content.astype(fact.dtype.numpy())

    def assign(self, value: ir.Value, like: ir.Value) -> None:
        """State that `value`, new in the graph, has dtype and shape of `like`."""
        known = self.fact(like)
        self._facts[value] = Fact(known.dtype, known.shape)

    def fact(self, value: ir.Value) -> Fact:
        """Everything known about `value`."""
        known = self._facts.get(value)
        if known is not None:
            return known
        pending = [value]
        while pending:  # an explicit stack: models are deeper than Python's recursion limit
            current = pending[-1]
            producer = current.producer()
            if current not in self._facts and producer is not None:
                missing = [i for i in producer.inputs if i is not None and i not in self._facts]
                if missing:
                    pending.extend(missing)
                    continue
            pending.pop()
            if current not in self._facts:
                self._infer(current, producer)
        return self._facts[value]

    def _infer(self, value: ir.Value, producer: ir.Node | None) -> None:
        tensor = self.tensor(value)
        if tensor is not None:
            self._facts[value] = self._one(self._constant_fact(value, tensor))
        elif producer is None:
            self._facts[value] = self._one(_input_fact(value))
        else:
            self._infer_node(producer)

    def _infer_node(self, node: ir.Node) -> None:
        inferred = self._outputs(node)
        for index, output in enumerate(node.outputs):
            fact = inferred[index] if index < len(inferred) else UNKNOWN
            if fact.dtype is None or fact.shape is None:
                fact = self._one(_with_declared(output, fact))
            self._facts[output] = fact

    def _outputs(self, node: ir.Node) -> list[Fact]:
        rule = RULES.get(node.op_type) if node.domain in RULED_DOMAINS else None
        if rule is None:
            return []
        inputs = tuple(None if i is None else self._facts[i] for i in node.inputs)
        attributes = _plain_attributes(node)
        key = None
        if attributes is not None:
            key = (node.op_type, node.domain, len(node.outputs), attributes, *map(id, inputs))
            known = self._derived.get(key)
            if known is not None:
                return known
        call = Call(node, inputs, self.opset)
        result = rule(call)
        inferred = [self._one(fact) for fact in ([result] if isinstance(result, Fact) else result or ())]
        if key is not None and not call.names_sizes:
            self._derived[key] = inferred
        return inferred

    def _constant_fact(self, value: ir.Value, tensor: ir.TensorProtocol) -> Fact:
        shape = tuple(tensor.shape.numpy())
        content = None
        if is_followed(tensor.dtype) and math.prod(shape) <= CONTENT_LIMIT:
            self._contents[value] = tensor.numpy()
            content = self._contents[value].astype(object)
        return Fact(tensor.dtype, shape, content)

    def _one(self, fact: Fact) -> Fact:
        """The object that stands for all facts equal to `fact`."""
        content = _representable(fact)
        if content is not fact.content:
            fact = Fact(fact.dtype, fact.shape, content)
        entries = None if content is None else (content.shape, *((type(e), e) for e in content.reshape(-1)))
        return self._shared.setdefault((fact.dtype, fact.shape, entries), fact)


def _plain_attributes(node: ir.Node) -> tuple | None:
    """The attributes as something to look up, None where one is a tensor or a graph."""
    found = []
    for name, attribute in node.attributes.data.items():
        if attribute.type not in _PLAIN or attribute.is_ref():
            return None
        value = attribute.value
        found.append((name, value if attribute.type in _NUMBERS else tuple(value)))
    return tuple(found)


def _representable(fact: Fact) -> np.ndarray | None:
    """The content without what its dtype does not hold: that wraps around, and is unknown."""
    if fact.content is None or fact.dtype is None or not fact.dtype.is_integer():
        return fact.content
    held = [_holds(fact.dtype, entry) for entry in fact.content.reshape(-1)]
    if all(held):
        return fact.content
    return np.where(np.reshape(held, fact.content.shape), fact.content, None)


def _holds(dtype: ir.DataType, entry: Size | None) -> bool:
    """Whether `entry` is a number of that dtype; of what the sizes make, 32 bits hold all that memory does."""
    if isinstance(entry, int):
        return dtype.min <= entry <= dtype.max
    return entry is None or (dtype.bitwidth >= 32 and (dtype.is_signed() or dims.is_nonnegative(entry)))


def _with_declared(value: ir.Value, fact: Fact) -> Fact:
    """`fact`, completed by what the model declares about `value`."""
    dtype, shape = fact.dtype or value.dtype, fact.shape
    if shape is None and value.shape is not None:
        declared = map(declared_size, value.shape)
        shape = tuple(d if isinstance(d, int) else dims.symbol(f"{value.name}:{i}") for i, d in enumerate(declared))
    return Fact(dtype, shape, fact.content)


def declared_size(size: int | ir.SymbolicDim) -> int | str | None:
    """A dimension as a model declares it: a number, a name or nothing. Exporters name some fixed sizes: "16"."""
    if isinstance(size, int):
        return size
    return int(size.value) if size.value is not None and size.value.isdecimal() else size.value


def _input_fact(value: ir.Value) -> Fact:
    if value.shape is None:
        return Fact(value.dtype)
    declared = map(declared_size, value.shape)
    shape = tuple(d if isinstance(d, int) else dims.symbol(d or f"{value.name}:{i}") for i, d in enumerate(declared))
    content = None
    if shape in ((), (1,)) and value.dtype is not None and value.dtype.is_integer() and value.const_value is None:
        content = np.full(shape, dims.runtime_value(value.name), dtype=object)
    return Fact(value.dtype, shape, content)
