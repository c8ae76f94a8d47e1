"""Building the ONNX function body of an operator out of standard ONNX operators."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from onnxfuse.custom_ops.int8 import SCALED_ROWS
from onnxfuse.custom_ops.packing import PANEL

DOMAIN = "onnxfuse"
_NUMPY_FLOATS = {float: np.float32, int: np.int64}


class Body:
    """The body of one fused node while it is built: `body.Mul(a, b)` adds a node and returns its output.

    An operator's function.py has a function of a Body and one value (None if absent) for each input, which returns the
    outputs by name in order. It computes in float32 and rounds to the operator's dtype once, as the kernel does.
    """

    def __init__(self, node: ir.Node, opset: int) -> None:
        self.node = node
        self.opset = opset
        self._nodes: list[ir.Node] = []
        self._dtypes: dict[ir.Value, ir.DataType] = {}
        self._formal: dict[ir.Value, ir.Value | None] = {}
        self._signature: list[str] = []
        self._baked: dict[str, None] = {}  # an ordered set

    def __getattr__(self, op_type: str) -> Callable[..., ir.Value]:
        if not op_type[0].isupper():
            raise AttributeError(op_type)

        def add(*inputs: ir.Value | None, **attributes: object) -> ir.Value:
            return self.add(op_type, inputs, attributes)[0]

        return add

    def add(
        self, op_type: str, inputs: Sequence[ir.Value | None], attributes: Mapping[str, object], outputs: int = 1
    ) -> Sequence[ir.Value]:
        """Adds a node with several outputs (`body.Split(...)` gives the first one only)."""
        attrs = [a if isinstance(a, ir.Attr) else ir.convenience.convert_attribute(n, a) for n, a in attributes.items()]
        node = ir.Node("", op_type, inputs, attrs, num_outputs=outputs, version=self.opset)
        self._nodes.append(node)
        return node.outputs

    # What is known of the node

    def dtype(self, value: ir.Value) -> ir.DataType:
        """The element type of an input of the operator."""
        return self._dtypes[value]

    def rank(self, value: ir.Value) -> int:
        """The rank of an input of the operator; the body is then made for this rank only."""
        shape = self._shape(value)
        self._baked[f"{value.name}{len(shape)}d"] = None
        return len(shape)

    def dim(self, value: ir.Value, axis: int) -> int:
        """A dimension of an input of the operator; the body is then made for this size only."""
        size = self._shape(value)[axis]
        if not isinstance(size, int):
            raise ValueError(f"{self._where()}: dimension {axis} of input {value.name} is {size}, expected a number")
        self._baked[f"{value.name}{size}"] = None
        return size

    def head_size(self, value: ir.Value, heads: str) -> int:
        """D of an input [B, S, N*D] or [B, N, S, D], N being the attribute `heads`; it is then made for this D."""
        shape = self._shape(value)
        count = 1 if len(shape) == 4 else self.node.attributes[heads].value
        if not isinstance(shape[-1], int) or shape[-1] % count:
            raise ValueError(
                f"{self._where()}: input {value.name} is {shape}, expected {count} heads in the last dimension"
            )
        self._baked[f"head_size{shape[-1] // count}"] = None
        return shape[-1] // count

    def _shape(self, value: ir.Value) -> ir.Shape:
        actual = self._formal[value]
        if actual is None or actual.shape is None:
            raise ValueError(f"{self._where()}: the rank of input {value.name} is unknown; run shape inference first")
        return actual.shape

    def baked(self, name: str, default: object = None) -> object:
        """The value of an attribute that the structure of the body depends on; the body is then made for it only."""
        if name not in self.node.attributes and default is None:
            raise ValueError(f"{self._where()}: attribute {name} is missing")
        value = self.node.attributes[name].value if name in self.node.attributes else default
        self._baked[f"{name}{value}"] = None
        return value

    def given(self, name: str) -> bool:
        """Whether the node has the attribute; the body is then made for such nodes only."""
        found = name in self.node.attributes
        if not found:
            self._baked[f"no_{name}"] = None
        return found

    def nonzero(self, name: str) -> bool:
        """Whether the node has the attribute and it is not 0; the body is then made for such nodes only."""
        found = name in self.node.attributes and self.node.attributes[name].value != 0
        if found:
            self._baked[name] = None
        return found

    def attribute(self, name: str, kind: type[float] | type[int] = float) -> ir.Value:
        """An attribute of the node as a scalar float32 or int64 value."""
        attr_type = {float: ir.AttributeType.FLOAT, int: ir.AttributeType.INT}[kind]
        key = {float: "value_float", int: "value_int"}[kind]
        return self.Constant(**{key: ir.RefAttr(key, name, attr_type)})

    # Words used in most bodies

    def constant(self, value: float | int | Sequence[int] | np.ndarray) -> ir.Value:
        """A constant: floats are float32, ints are int64."""
        if not isinstance(value, np.ndarray):
            kind = float if isinstance(value, float) else int
            value = np.array(value, _NUMPY_FLOATS[kind])
        return self.Constant(value=ir.tensor(value))

    def float32(self, value: ir.Value) -> ir.Value:
        """An input of the operator, widened to float32."""
        return self.widened(value, like=value)

    def widened(self, value: ir.Value, like: ir.Value) -> ir.Value:
        """A value of the dtype of an input of the operator, widened to float32."""
        return value if self.dtype(like) == ir.DataType.FLOAT else self.Cast(value, to=ir.DataType.FLOAT)

    def rounded(self, value: ir.Value, like: ir.Value) -> ir.Value:
        """A float32 value, rounded to the dtype of an input of the operator."""
        dtype = self.dtype(like)
        return value if dtype == ir.DataType.FLOAT else self.Cast(value, to=dtype)

    def matrix(self, weight: ir.Value, scale: ir.Value | None) -> ir.Value:
        """A weight in any of its forms, see packing.py and int8.py, as float32 [K, N].

        ONNX Runtime folds this where the weight is an initializer.
        """
        wide = self.float32(weight)
        if self.rank(weight) == 2:
            return wide
        if scale is not None:
            scales = self.Unsqueeze(self.float32(scale), self.constant([2, 4]))
            numbers = self.Mul(self.Reshape(wide, self.constant([0, -1, SCALED_ROWS // 4, PANEL, 4])), scales)
            return self.Flatten(self.Transpose(numbers, perm=[1, 2, 4, 0, 3]), axis=3)
        return self.Reshape(self.Transpose(wide, perm=[1, 0, 2]), self.constant([0, -1]))

    def reduce(self, op_type: str, value: ir.Value, axis: int) -> ir.Value:
        """ReduceMean, ReduceMax ... over one axis that is kept; the axes became an input in opset 18."""
        if self.opset >= 18:
            return self.add(op_type, [value, self.constant([axis])], {"keepdims": 1})[0]
        return self.add(op_type, [value], {"axes": [axis], "keepdims": 1})[0]

    def split(self, value: ir.Value, sizes: Sequence[int], axis: int) -> Sequence[ir.Value]:
        """Consecutive parts of a value."""
        return self.add("Split", [value, self.constant(list(sizes))], {"axis": axis}, outputs=len(sizes))

    # Making the function

    def build(self, operator: Callable[..., dict[str, ir.Value]]) -> ir.Function:
        """The function that `operator` describes, named by (domain, operator, signature of the inputs)."""
        names = list(inspect.signature(operator).parameters)[1:]
        actual = [*self.node.inputs, *[None] * (len(names) - len(self.node.inputs))]
        formals = [ir.Value(name=name) for name in names]
        self._formal = dict(zip(formals, actual, strict=True))
        for formal, value in self._formal.items():
            if value is None:
                self._signature.append("none")
                continue
            if value.dtype is None:
                raise ValueError(f"{self._where()}: the dtype of input {formal.name} is unknown; run shape inference")
            self._dtypes[formal] = value.dtype
            self._signature.append(value.dtype.name.lower())
        present = [formal if value is not None else None for formal, value in self._formal.items()]
        outputs = operator(self, *present)
        wanted = len(self.node.outputs)  # the others are optional
        if wanted < len(outputs):
            outputs = dict(list(outputs.items())[:wanted])
            self._baked[f"{wanted}outputs"] = None
        for name, value in outputs.items():
            if value in self._formal:  # a function must not hand an input on as it is
                outputs[name] = self.Identity(value)
        for name, value in outputs.items():
            value.name = name
        inputs = formals[: len(self.node.inputs)]
        graph = ir.Graph(inputs, list(outputs.values()), nodes=self._nodes, opset_imports={"": self.opset})
        return ir.Function(
            self.node.domain,
            self.node.op_type,
            "_".join([*self._signature, *self._baked]),
            graph=graph,
            attributes=[ir.Attr(a.name, a.type, None) for a in self.node.attributes.values()],
        )

    def _where(self) -> str:
        return f"{self.node.domain}.{self.node.op_type} (node {self.node.name})"
