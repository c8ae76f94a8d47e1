"""What is known about a value: dtype, shape, constant content. The only module that asks onnx_ir such questions."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

SMALL = 4096  # elements up to which a constant's content is read


class Facts:
    """Answers questions about the values of one model; answers may be None ("unknown"), never wrong."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model

    def dtype(self, value: ir.Value) -> ir.DataType | None:
        """The element type of `value`."""
        return value.dtype

    def shape(self, value: ir.Value) -> tuple[object, ...] | None:
        """One entry a dimension: an int, a hashable symbolic dimension (equal iff equal for every input), or None."""
        if value.shape is None:
            return None
        return tuple(d if isinstance(d, int) else (d.value or None) for d in value.shape)

    def is_constant(self, value: ir.Value) -> bool:
        """Whether `value` is an initializer or the output of a Constant node (its content is not read)."""
        return value.const_value is not None or (value.producer() is not None and value.producer().op_type == "Constant")

    def constant(self, value: ir.Value) -> np.ndarray | None:
        """The content of a small constant, None if `value` is not one."""
        tensor = value.const_value
        if tensor is None or tensor.size > SMALL:
            return None
        return tensor.numpy()
