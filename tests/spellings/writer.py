"""The writer of a case: products of matrices on top of movement, arithmetic and the graph itself."""

from __future__ import annotations

import numpy as np

from spellings.draft import Value
from spellings.movement import Movement
from spellings.sizes import broadcast, merged


class Writer(Movement):
    """Writes one case, each step in one of the ways in which exporters write it."""

    def matmul(self, a: Value, b: Value) -> Value:
        shape = (*broadcast(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1])
        return self.node("MatMul", a, b, shape=shape)

    def linear(self, x: Value, weight: np.ndarray, bias: np.ndarray | None = None) -> Value:
        """x @ weight + bias: MatMul and Add, or Gemm on rows [B*S, K]."""
        if x.rank == 2 and self.coin(0.4):
            return self._gemm(x, weight, bias)
        if x.rank == 3 and self.coin(0.15):
            rows = self.reshape(x, (merged(x.shape[:2]), x.shape[2]))
            made = self._gemm(rows, weight, bias)
            return self.reshape(made, (*x.shape[:2], weight.shape[1]), source=x)
        if x.rank == 3 and x.dtype == "float32" and self.coin(0.1):
            shape = (*x.shape[:2], weight.shape[1])
            made = self.node("Einsum", x, self.constant(weight), shape=shape, equation="bsk, kn -> bsn")
        else:
            made = self.matmul(x, self.constant(weight))
        return made if bias is None else self.add(made, self.constant(bias))

    def _gemm(self, rows: Value, weight: np.ndarray, bias: np.ndarray | None) -> Value:
        turned = self.coin()
        operands = [self.constant(weight.T if turned else weight)] + ([] if bias is None else [self.constant(bias)])
        attributes = {"transB": 1} if turned else {}
        if self.coin(0.3):
            attributes |= {"alpha": 1.0, "beta": 1.0}
        return self.node("Gemm", rows, *operands, shape=(rows.shape[0], weight.shape[1]), **attributes)
