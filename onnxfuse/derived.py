"""Constants computed from stored ones when they are written, not when the graph is rewritten."""

from __future__ import annotations

from collections.abc import Callable
from typing import BinaryIO

import numpy as np
import onnx_ir as ir

from onnxfuse.facts import SMALL

SLAB = 1 << 25  # bytes of a result, or of what it is computed from, that are in memory at a time


def unmap(tensor: ir.TensorProtocol) -> None:
    """Give back the memory of a tensor that lies in a file; a small one stays mapped, since `Facts` may hold it."""
    if isinstance(tensor, ir.ExternalTensor) and tensor.size > SMALL:
        tensor.release()


class ComputedTensor(ir.LazyTensor):
    """A constant whose rows are computed each time they are asked for and never kept.

    Parameters
    ----------
    stored : callable
        () -> the tensor it is computed from. If that lies in a file, the file is unmapped again after each slab of
        rows, so that writing a model takes little memory however large its weights are.
    rows : callable
        (array of the stored tensor, start, stop) -> rows `start` to `stop` of the result, as a new array.
    dtype, shape, name
        The result's.
    """

    __slots__ = ("_rows", "_stored")

    def __init__(
        self,
        stored: Callable[[], ir.TensorProtocol],
        rows: Callable[[np.ndarray, int, int], np.ndarray],
        dtype: ir.DataType,
        shape: tuple[int, ...],
        name: str,
    ) -> None:
        self._stored = stored
        self._rows = rows
        super().__init__(lambda: self._computed(0, shape[0]), dtype, ir.Shape(shape), name=name)

    def _computed(self, start: int, stop: int) -> ir.Tensor:
        stored = self._stored()
        array = self._rows(stored.numpy(), start, stop)
        unmap(stored)
        if array.shape != (stop - start, *self.shape[1:]):
            raise ValueError(f"{self.name}: computed {list(array.shape)} as rows {start} to {stop} of {self.shape}")
        return ir.Tensor(array, dtype=self.dtype, name=self.name)

    @property
    def is_from_file(self) -> bool:
        """Whether what it is computed from lies in a file."""
        stored = self._stored()
        return isinstance(stored, ir.ExternalTensor) or (isinstance(stored, ComputedTensor) and stored.is_from_file)

    def tofile(self, file: BinaryIO) -> None:
        """Write the tensor's bytes slab by slab; all at once where every slab would compute its source again."""
        rows, stored = self.shape[0], self._stored()
        in_file = isinstance(stored, ir.ExternalTensor) and self.dtype.bitwidth >= 8
        step = max(1, SLAB * rows // max(1, self.nbytes, stored.nbytes)) if in_file else max(1, rows)
        for start in range(0, rows, step):
            self._computed(start, min(start + step, rows)).tofile(file)


class DerivedTensor(ComputedTensor):
    """`function` of an initializer, such as its packed form.

    Parameters
    ----------
    source : onnx_ir.Value
        An initializer [K, N].
    function : callable
        ndarray -> new ndarray of the same dtype, such as `packing.pack`; depends on its argument alone, and on columns
        of it row by row: with N = R * g for a result of R rows, function(w[:, i * g : j * g]) is function(w)[i:j].
    shape : tuple
        The result's.

    The verifier feeds `source` with random values and the result with `function` of them; the file is not read.
    """

    __slots__ = ("function", "source")

    def __init__(
        self, source: ir.Value, function: Callable[[np.ndarray], np.ndarray], shape: tuple[int, ...], name: str
    ) -> None:
        self.source = source
        self.function = function

        def rows(weight: np.ndarray, start: int, stop: int) -> np.ndarray:
            columns = weight.shape[1] // shape[0]
            return function(weight[:, start * columns : stop * columns])

        super().__init__(lambda: source.const_value, rows, source.const_value.dtype, shape, name)
