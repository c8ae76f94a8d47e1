"""Operators that sum over axes."""

from __future__ import annotations

import onnx_ir as ir

from onnxfuse.dims import Size
from onnxfuse.shapes.fact import (
    Call,
    Fact,
    broadcast_shape,
    rule,
)


@rule("MatMul")
def matmul(call: Call) -> Fact:
    a, b = call[0].shape, call[1].shape
    if a is None or b is None or len(a) < 2 or len(b) < 2:
        return Fact(call[0].dtype)
    return Fact(call[0].dtype, (*broadcast_shape(a[:-2], b[:-2]), a[-2], b[-1]))


@rule("Gemm")
def gemm(call: Call) -> Fact:
    a, b = call[0].shape, call[1].shape
    if a is None or b is None:
        return Fact(call[0].dtype)
    return Fact(call[0].dtype, (a[1] if call.attr("transA", 0) else a[0], b[0] if call.attr("transB", 0) else b[1]))


@rule("Einsum")
def einsum(call: Call) -> Fact:
    operands, _, result = call.attr("equation", "").replace(" ", "").partition("->")
    sizes: dict[str, Size] = {}
    for index, labels in enumerate(operands.split(",")):
        shape = call[index].shape
        if shape is None or not labels.isalpha() or len(labels) != len(shape):
            return Fact(call[0].dtype)
        for label, size in zip(labels, shape, strict=True):
            if sizes.get(label, 1) == 1:  # a size of one broadcasts
                sizes[label] = size
    return Fact(call[0].dtype, tuple(sizes[c] for c in result) if result else None)


@rule("MatMulNBits")
def matmul_nbits(call: Call) -> Fact:
    shape = call[0].shape
    return Fact(call[0].dtype, None if shape is None else (*shape[:-1], call.attr("N")))


@rule("DequantizeLinear")
def dequantize(call: Call) -> Fact:
    return Fact(call[1].dtype, call[0].shape)


@rule("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL2", "ReduceSumSquare")
def reduce(call: Call) -> Fact:
    shape = call[0].shape
    if shape is None:
        return Fact(call[0].dtype)
    axes = call.listed("axes", 1)
    if axes is None and call.has(1):
        return Fact(call[0].dtype)
    if not axes:
        axes = [] if call.attr("noop_with_empty_axes", 0) else list(range(len(shape)))
    gone = {a % len(shape) for a in axes}
    if call.attr("keepdims", 1):
        return Fact(call[0].dtype, tuple(1 if i in gone else s for i, s in enumerate(shape)))
    return Fact(call[0].dtype, tuple(s for i, s in enumerate(shape) if i not in gone))


@rule("ArgMax", "ArgMin")
def arg_reduce(call: Call) -> Fact:
    shape = call[0].shape
    if shape is None:
        return Fact(ir.DataType.INT64)
    axis = call.attr("axis", 0) % len(shape)
    kept = (1,) if call.attr("keepdims", 1) else ()
    return Fact(ir.DataType.INT64, shape[:axis] + kept + shape[axis + 1 :])
