"""`new`: what a rewrite builds its nodes with. The nodes stay outside the graph until the rewrite is accepted."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import onnx
import onnx_ir as ir

from onnxfuse import operators
from onnxfuse.fusion import Captured

_COERCIONS: dict[object, Callable[[object], object]] = {
    onnx.defs.OpSchema.AttrType.INT: int,
    onnx.defs.OpSchema.AttrType.FLOAT: float,
    onnx.defs.OpSchema.AttrType.INTS: lambda values: [int(value) for value in values],
    onnx.defs.OpSchema.AttrType.FLOATS: lambda values: [float(value) for value in values],
}


class Builder:
    """Builds nodes of one domain: `new.RMSNorm(x, weight, epsilon=1e-5)` returns the output value.

    Inputs are captures, values, None for an optional input, or numpy arrays, which become initializers. An attribute
    that is None is left out. `outputs=2` returns a tuple of two values.
    """

    def __init__(self, domain: str = operators.OWN, shared: Builder | None = None) -> None:
        self._domain = domain
        self.nodes: list[ir.Node] = shared.nodes if shared else []
        self.constants: list[ir.Value] = shared.constants if shared else []

    @property
    def onnx(self) -> Builder:
        """Builds standard operators."""
        return self.ns(operators.STANDARD)

    def ns(self, domain: str) -> Builder:
        """Builds operators of `domain`."""
        return Builder(domain, self)

    def constant(self, content: np.ndarray | ir.TensorProtocol, name: str | None = None) -> ir.Value:
        """An initializer, registered if the rewrite is accepted; `name` is made unique. A lazy tensor stays lazy."""
        tensor = ir.Tensor(np.asarray(content)) if isinstance(content, (np.ndarray, np.generic)) else content
        value = ir.Value(name=name, const_value=tensor, shape=ir.Shape(tensor.shape), type=ir.TensorType(tensor.dtype))
        self.constants.append(value)
        return value

    def __getattr__(self, op_type: str) -> Callable[..., ir.Value | tuple[ir.Value, ...]]:
        if op_type.startswith("_"):
            raise AttributeError(op_type)

        def build(*inputs: object, outputs: int = 1, **attributes: object) -> ir.Value | tuple[ir.Value, ...]:
            given = {name: value for name, value in attributes.items() if value is not None}
            while inputs and inputs[-1] is None:
                inputs = inputs[:-1]
            node = ir.Node(
                self._domain,
                op_type,
                [self._input(op_type, value) for value in inputs],
                [self._attribute(op_type, name, value) for name, value in given.items()],
                num_outputs=outputs,
            )
            self.nodes.append(node)
            return node.outputs if outputs > 1 else node.outputs[0]

        return build

    def _input(self, op_type: str, value: object) -> ir.Value | None:
        if isinstance(value, Captured):
            return value.value
        if isinstance(value, (np.ndarray, np.generic)):
            return self.constant(np.asarray(value))
        if value is None or isinstance(value, ir.Value):
            return value
        raise TypeError(
            f"new.{op_type}: an input is {type(value).__name__} {value!r}; expected a capture, a value, None or a "
            "numpy array (a scalar() capture is a number: give it as attribute, or m.captured['name'] as input)"
        )

    def _attribute(self, op_type: str, name: str, value: object) -> ir.Attr:
        definition = operators.schema(self._domain, op_type)
        known = definition.attributes.get(name) if definition else None
        if isinstance(value, str) and known is not None and known.type == onnx.defs.OpSchema.AttrType.INT:
            value = operators.dtype_from_name(value)
        if known is not None and known.type in _COERCIONS:
            value = _COERCIONS[known.type](value)
        if isinstance(value, (bool, int, np.integer)):
            return ir.AttrInt64(name, int(value))
        if isinstance(value, (float, np.floating)):
            return ir.AttrFloat32(name, float(value))
        if isinstance(value, (list, tuple)) and all(isinstance(item, (int, np.integer)) for item in value):
            return ir.AttrInt64s(name, [int(item) for item in value])
        return ir.convenience.convert_attributes({name: value})[0]


def discard(nodes: Iterable[ir.Node]) -> None:
    """Forget nodes that stay outside the graph, so that the values they read no longer count them as users."""
    for node in nodes:
        node.resize_inputs(0)
