"""Operators whose data are shapes: Shape, Size, ConstantOfShape, Range."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxfuse import dims
from onnxfuse.shapes.fact import (
    CONTENT_LIMIT,
    Call,
    Fact,
    array,
    is_followed,
    product,
    rule,
)


@rule("Shape")
def shape_of(call: Call) -> Fact:
    shape = call[0].shape
    if shape is None:
        return Fact(ir.DataType.INT64, call.fresh(1))
    part = shape[slice(call.attr("start", 0), call.attr("end", None))]
    return Fact(ir.DataType.INT64, (len(part),), array(list(part)).reshape(len(part)))


@rule("Size")
def size_of(call: Call) -> Fact:
    shape = call[0].shape
    return Fact(ir.DataType.INT64, (), None if shape is None else array(product(shape)))


@rule("ConstantOfShape")
def constant_of_shape(call: Call) -> Fact:
    value = call.attr("value")
    dtype = value.dtype if value is not None else ir.DataType.FLOAT
    shape = call[0].integers()
    if shape is None:
        return Fact(dtype, call.fresh_of_length(0))
    content = None
    if all(isinstance(s, int) for s in shape) and product(shape) <= CONTENT_LIMIT and is_followed(dtype):
        content = np.full(shape, value.numpy().reshape(-1)[0].item(), dtype=object)
    return Fact(dtype, tuple(shape), content)


@rule("Range")
def range_of(call: Call) -> Fact:
    start, limit, delta = (call[i].integers() for i in range(3))
    if not (start and limit and delta) or delta[0] != 1:
        return Fact(call[0].dtype, call.fresh(1))
    length = dims.maximum(limit[0] - start[0], 0)
    content = None
    if isinstance(length, int) and length <= CONTENT_LIMIT and is_followed(call[0].dtype):
        content = array([start[0] + i for i in range(length)]).reshape(length)
    return Fact(call[0].dtype, (length,), content)
