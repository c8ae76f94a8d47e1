"""Spellings of RMSNorm, and of the residual addition in front of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from spellings.draft import HALF, Value
from spellings.sizes import Dim
from spellings.writer import Writer

EPSILONS = (1e-5, 1e-6, 1e-3)
NORMS = ("RMSNorm", "SkipRMSNorm")


def rms_norm(w: Writer) -> dict[str, int]:
    """x / sqrt(mean(x^2) + eps) * weight."""
    size = w.fixed(8, 16)
    # with two equal sizes: a reduction over the wrong one, or a lost axis, would broadcast all the same
    shape = w.fixed((w.b, w.s, size), (w.b, w.s, 4, size), (w.b, size, size), (size, size))
    x = w.input("x", shape)
    w.output(normed(w, x, gain(w, size)))
    return {"RMSNorm": 1}


def skip_rms_norm(w: Writer) -> dict[str, int]:
    """sum = x + skip, y = RMSNorm(sum)."""
    size = w.fixed(8, 16)
    shape = (w.b, w.s, size)
    if w.coin(0.12):
        return _skip_as_one_operator(w, shape)
    x = w.input("x", shape)
    skip = w.input("skip", (size,) if w.mutates("broadcast_skip", "SkipRMSNorm") else shape)
    total = w.sub(x, skip) if w.mutates("difference", "SkipRMSNorm") else w.add(x, skip)
    y = normed(w, x if w.mutates("norm_of_x", "SkipRMSNorm") else total, gain(w, size))
    w.output(y)
    if w.fixed(True, True, True, False):
        other = w.add(x, w.input("other", shape)) if w.shifts_to("other_sum") else total
        w.output(other if w.fixed(True, False) else w.add(other, w.input("branch", shape)))
    return {"SkipRMSNorm": 1}


def _skip_as_one_operator(w: Writer, shape: Sequence[Dim]) -> dict[str, int]:
    """What ONNX Runtime's tools write, with a bias where it is not SkipRMSNorm."""
    x, skip = w.input("x", shape), w.input("skip", shape)
    operands = [x, skip, w.constant(gain(w, shape[-1]))]
    if w.mutates("bias", "SkipRMSNorm"):
        operands.append(w.constant(w.weight(shape[-1])))
    op = "SkipSimplifiedLayerNormalization"
    y, _, _, total = w.node(op, *operands, shape=[shape, None, None, shape], outputs=4, epsilon=_epsilon(w))
    w.output(y)
    if w.fixed(True, True, True, False):
        w.output(total)
    return {"SkipRMSNorm": 1}


def gain(w: Writer, size: int) -> np.ndarray:
    """Weights around one."""
    return w.weight(size, scale=0.3, offset=1.0)


def normed(w: Writer, x: Value, weight: np.ndarray) -> Value:
    """RMSNorm of x over its last axis."""
    size, dtype = x.shape[-1], x.dtype
    if w.coin(0.12):
        return _one_operator(w, x, weight)
    wide = dtype in HALF and w.coin(0.8)
    h = w.cast(x, "float32") if wide or w.coin(0.2) else x
    rms = _Root(w, h)
    scale = _weight(w, weight, h.rank, h.dtype if w.coin(0.3) else dtype)
    if x.shape[-2] == size and w.mutates("plain_weight_row", *NORMS):  # one gain a token instead of one a feature
        scale = w.constant(w.weight(size, 1, scale=0.3, offset=1.0), scale.dtype)
    if scale.dtype == h.dtype and w.coin(0.25):
        return w.cast(_associated(w, h, rms, scale), dtype)
    y = _divided(w, h, rms)
    if dtype == "float32" and w.mutates("rounded", *NORMS):
        y = w.rounded(y)
    if scale.dtype != h.dtype:
        y = w.cast(y, scale.dtype)
    y = w.add(y, scale) if w.mutates("plus_weight", *NORMS) else w.mul(y, scale)
    return w.cast(y, dtype)


def _one_operator(w: Writer, x: Value, weight: np.ndarray) -> Value:
    """RMSNorm as one operator: ONNX's from opset 23 on, or the one that ONNX Runtime's tools write."""
    op = w.pick("RMSNormalization", "SimplifiedLayerNormalization") if w.opset >= 23 else "SimplifiedLayerNormalization"
    epsilon = _epsilon(w)
    axis, rows = -1, x.shape[-2]
    if isinstance(rows, int) and w.mutates("of_two_axes", *NORMS):
        axis, weight = -2, np.broadcast_to(weight, (rows, *weight.shape))
    given = {"axis": axis} if axis != -1 or w.coin() else {}
    given |= {"epsilon": epsilon} if epsilon != 1e-5 or w.coin() else {}
    return w.node(op, x, w.constant(weight), shape=x.shape, **given)


def _epsilon(w: Writer) -> float:
    epsilon = w.fixed(*EPSILONS)
    return 1.0 if w.shifts_to("large_epsilon") else epsilon


class _Root:
    """mean(h^2) + eps, from which the root or its inverse is taken."""

    def __init__(self, w: Writer, h: Value) -> None:
        self.w = w
        epsilon = _epsilon(w)
        source = h
        if w.mutates("other_input", *NORMS):
            source = w.cast(w.input("other", h.shape), h.dtype)
        if w.mutates("variance", *NORMS):
            source = w.sub(h, w.reduce("ReduceMean", h))
        mean = _mean_square(w, source)
        self.variance = self._shifted(mean, epsilon)

    def _shifted(self, mean: Value, epsilon: float) -> Value:
        w = self.w
        rows = mean.shape[-2] if mean.rank > 1 else None
        if isinstance(rows, int) and w.mutates("eps_vector", *NORMS):
            return w.add(mean, w.constant(np.linspace(0.5, 2, rows).reshape(rows, 1), mean.dtype))
        if w.mutates("eps_at_run_time", *NORMS):
            return w.add(mean, w.cast(w.input("eps", (1,), "float32"), mean.dtype))
        if w.mutates("eps_negative", *NORMS):
            return w.sub(mean, w.scalar(0.2, mean))
        if w.mutates("eps_outside", *NORMS):
            self.outside = 0.1
            return mean
        if w.coin(0.1):  # torch's exporter takes an eps of 1e-8 for zero
            return mean
        if w.coin(0.1):
            return w.node("Sub", mean, w.scalar(-epsilon, mean), shape=mean.shape)
        return w.add(mean, w.scalar(epsilon, mean))

    outside = 0.0

    def root(self) -> Value:
        w = self.w
        if w.mutates("no_root", *NORMS):
            return self.variance
        if w.mutates("cube_root", *NORMS):
            return w.power(self.variance, 1 / 3)
        made = w.sqrt(self.variance)
        return w.add(made, w.scalar(self.outside, made)) if self.outside else made

    def inverse(self) -> Value:
        w = self.w
        if w.mutation in ("no_root", "cube_root", "eps_outside"):
            return w.reciprocal(self.root())
        return w.rsqrt(self.variance)


def _mean_square(w: Writer, h: Value) -> Value:
    """mean(h^2) over the last axis."""
    axis = -2 if w.mutates("axis", *NORMS) else -1
    size = h.shape[axis]
    keepdims = not (h.rank == 2 and w.mutates("keepdims", *NORMS))
    if w.mutates("absolute", *NORMS):
        return w.reduce("ReduceMean", w.apply("Abs", h), axis, keepdims)
    if w.mutates("cube", *NORMS):
        return w.reduce("ReduceMean", w.apply("Abs", w.power(h, 3)), axis, keepdims)
    square = w.square(h)
    if w.mutates("sum", *NORMS):
        return w.reduce("ReduceSum", square, axis, keepdims)
    kind = w.pick("mean", "mean", "mean", "sum", "square", "norm")
    if kind == "mean" or not isinstance(size, int):
        return w.reduce("ReduceMean", square, axis, keepdims)
    if kind == "sum":
        total = w.reduce("ReduceSum", square, axis, keepdims)
    elif kind == "square":
        total = w.reduce("ReduceSumSquare", h, axis, keepdims)
    else:
        total = w.square(w.reduce("ReduceL2", h, axis, keepdims))
    divisor = size * 2 if w.mutates("twice_the_size", *NORMS) else size
    return w.times(total, 1 / divisor)


def _weight(w: Writer, weight: np.ndarray, rank: int, dtype: str) -> Value:
    """The gain [D], or with leading axes of size one, or 1 + what Gemma stores."""
    shape = (1,) * min(w.pick(0, 0, 0, 1, 2), rank - 1) + weight.shape
    array = weight.reshape(shape).astype(dtype)
    if w.coin(0.15):
        return w.node("Add", w.constant(array - 1, dtype), w.scalar(1, Value("", dtype, shape)), shape=shape)
    return w.constant(array, dtype)


def _divided(w: Writer, h: Value, rms: _Root) -> Value:
    if w.mutates("times_root", *NORMS):
        return w.mul(h, rms.root())
    return w._binary("Div", h, rms.root()) if w.coin(0.4) else w.mul(h, rms.inverse())


def _associated(w: Writer, h: Value, rms: _Root, scale: Value) -> Value:
    """h * weight / rms, multiplied in another order."""
    kind = w.pick("weighted", "gain")
    if kind == "weighted":
        return _divided(w, w.mul(h, scale), rms)
    return w.mul(h, _divided(w, scale, rms))
