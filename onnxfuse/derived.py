"""A constant computed from another one when it is written, not when the graph is rewritten."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir


class DerivedTensor(ir.LazyTensor):
    """`function(source)`, computed each time it is asked for and never kept.

    Parameters
    ----------
    source : onnx_ir.Value
        An initializer; its file is unmapped again afterwards, so that writing a model needs memory for one tensor.
    function : callable
        ndarray -> ndarray of the source's dtype, such as `packing.pack`; depends on its argument alone.
    shape : tuple
        The result's shape.

    The verifier feeds `source` with random values and the result with `function` of them; the file is not read.
    """

    __slots__ = ("function", "source")

    def __init__(
        self, source: ir.Value, function: Callable[[np.ndarray], np.ndarray], shape: tuple[int, ...], name: str
    ) -> None:
        self.source = source
        self.function = function
        super().__init__(self._compute, source.const_value.dtype, ir.Shape(shape), name=name)

    def _compute(self) -> ir.TensorProtocol:
        stored = self.source.const_value
        result = ir.Tensor(np.array(self.function(stored.numpy())), dtype=self.dtype, name=self.name)
        if isinstance(stored, ir.ExternalTensor):
            stored.release()
        if tuple(result.shape) != tuple(self.shape):
            raise ValueError(f"{self.name}: computed a tensor of shape {result.shape}, expected {self.shape}")
        return result
