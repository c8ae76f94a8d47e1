"""Arithmetic in all the ways in which exporters write it."""

from __future__ import annotations

from spellings.draft import DTYPES, FLOATING, Draft, Value
from spellings.sizes import broadcast


class Arithmetic(Draft):
    """Elementwise operators."""

    def _binary(self, op: str, a: Value, b: Value, *, commutes: bool = False, **extra) -> Value:
        shape = broadcast(a.shape, b.shape)
        if commutes and self.coin():
            a, b = b, a
        return self.node(op, a, b, shape=shape, **extra)

    def add(self, a: Value, b: Value) -> Value:
        summed = a.dtype in FLOATING and self.coin(0.08)
        return self._binary("Sum" if summed else "Add", a, b, commutes=True)

    def sub(self, a: Value, b: Value) -> Value:
        if self.coin(0.15):
            return self.add(a, self.neg(b))
        return self._binary("Sub", a, b)

    def mul(self, a: Value, b: Value) -> Value:
        return self._binary("Mul", a, b, commutes=True)

    def div(self, a: Value, b: Value) -> Value:
        """a / b for two tensors."""
        kind = self.pick("div", "div", "reciprocal")
        return self._binary("Div", a, b) if kind == "div" else self.mul(a, self.reciprocal(b))

    def reciprocal(self, a: Value) -> Value:
        kind = self.pick("Reciprocal", "Div", "Pow")
        if kind == "Reciprocal":
            return self.node("Reciprocal", a, shape=a.shape)
        if kind == "Div":
            return self._binary("Div", self.scalar(1, a), a)
        return self.power(a, -1)

    def times(self, a: Value, number: float) -> Value:
        """a * number for a constant."""
        if self.coin(0.3):
            return self._binary("Div", a, self.scalar(1 / number, a))
        return self.mul(a, self.scalar(number, a))

    def neg(self, a: Value) -> Value:
        kind = self.pick("Neg", "Neg", "Mul", "Sub")
        if kind == "Neg":
            return self.node("Neg", a, shape=a.shape)
        if kind == "Mul":
            return self.mul(a, self.scalar(-1, a))
        return self._binary("Sub", self.scalar(0, a), a)

    def power(self, a: Value, exponent: float) -> Value:
        """a ** exponent; ONNX takes an exponent of another dtype."""
        dtypes = [a.dtype, a.dtype, "float32"] + (["int64"] if exponent == int(exponent) else [])
        return self._binary("Pow", a, self.scalar(exponent, a, dtype=self.pick(*dtypes)))

    def square(self, a: Value) -> Value:
        return self.node("Mul", a, a, shape=a.shape) if self.coin() else self.power(a, 2)

    def sqrt(self, a: Value) -> Value:
        return self.node("Sqrt", a, shape=a.shape) if self.coin(0.8) else self.power(a, 0.5)

    def rsqrt(self, a: Value) -> Value:
        kind = self.pick("reciprocal", "reciprocal", "power", "inside")
        if kind == "reciprocal":
            return self.reciprocal(self.sqrt(a))
        if kind == "inside":
            return self.sqrt(self.reciprocal(a))
        return self.power(a, -0.5)

    def apply(self, op: str, a: Value, **attributes) -> Value:
        """An elementwise function without a second spelling."""
        return self.node(op, a, shape=a.shape, **attributes)

    def rounded(self, a: Value) -> Value:
        """`a` with the precision of float16."""
        half = self.node("Cast", a, shape=a.shape, dtype="float16", to=DTYPES["float16"])
        half = self.node("Identity", half, shape=a.shape)  # ONNX Runtime leaves out two Casts in a row
        return self.node("Cast", half, shape=a.shape, dtype=a.dtype, to=DTYPES[a.dtype])

    def sigmoid(self, a: Value) -> Value:
        if self.coin(0.7):
            return self.node("Sigmoid", a, shape=a.shape)
        return self.reciprocal(self.add(self.scalar(1, a), self.node("Exp", self.neg(a), shape=a.shape)))

    def cast(self, a: Value, dtype: str) -> Value:
        """`a` as `dtype`; exporters leave Casts that do nothing."""
        if a.dtype == dtype and not self.coin(0.1):
            return a
        if self.coin(0.1) and self.opset >= 15:
            like = self.constant(0, dtype)
            return self.node("CastLike", a, like, shape=a.shape, dtype=dtype)
        return self.node("Cast", a, shape=a.shape, dtype=dtype, to=DTYPES[dtype])
