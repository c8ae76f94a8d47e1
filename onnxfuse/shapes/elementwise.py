"""Operators that act on every element, under broadcasting."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from onnxfuse import dims
from onnxfuse.dims import Size
from onnxfuse.shapes.fact import (
    UNKNOWN,
    Call,
    Fact,
    broadcast_shape,
    elementwise,
    followed,
    rule,
)


@rule(
    *("Abs", "Acos", "Asin", "Atan", "Ceil", "Celu", "Clip", "Cos", "Cosh", "CumSum", "Elu", "Erf", "Exp", "Floor"),
    *("Gelu", "HardSigmoid", "HardSwish", "Identity", "LayerNormalization", "LeakyRelu", "Log", "LogSoftmax", "Mish"),
    *(
        "QuickGelu",
        "RMSNorm",
        "RMSNormalization",
        "Reciprocal",
        "Relu",
        "Round",
        "ScatterElements",
        "ScatterND",
        "Selu",
    ),
    *("Sigmoid", "Sign", "SimplifiedLayerNormalization", "Sin", "Sinh", "Softmax", "Softplus", "Softsign", "Sqrt"),
    *("Swish", "SwiGLU", "Tan", "Tanh", "Trilu", "RotaryEmbedding", "FastGelu", "InstanceNormalization"),
)
def same_as_first(call: Call) -> Fact:
    # com.microsoft.SimplifiedLayerNormalization and friends have more outputs; those keep their declared facts.
    return replace(call[0], content=call[0].content if call.node.op_type == "Identity" else None)


@rule("Dropout")
def dropout(call: Call) -> Sequence[Fact]:
    return [call[0], Fact(ir.DataType.BOOL, call[0].shape)]


@rule("SkipRMSNorm")
def skip_norm(call: Call) -> Sequence[Fact]:
    return [Fact(call[0].dtype, call[0].shape)] * 2


@rule("SkipSimplifiedLayerNormalization", "SkipLayerNormalization")
def microsoft_skip_norm(call: Call) -> Sequence[Fact]:
    same = Fact(call[0].dtype, call[0].shape)
    return [same, UNKNOWN, UNKNOWN, same]


@rule("Neg")
def neg(call: Call) -> Fact:
    return replace(call[0], content=elementwise(lambda a: -a, call[0].content))


@rule("Not")
def logical_not(call: Call) -> Fact:
    return replace(call[0], content=elementwise(lambda a: not a, call[0].content))


@rule("IsNaN", "IsInf")
def predicate(call: Call) -> Fact:
    return Fact(ir.DataType.BOOL, call[0].shape)


def _int_div(a: Size, b: Size) -> Size | None:
    # ONNX integer division truncates; for operands known to be nonnegative that is floor division
    if b == 0 or not (dims.is_nonnegative(a) and dims.is_nonnegative(b)):
        if not (isinstance(a, int) and isinstance(b, int) and b):
            return None
        return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
    return dims.floor_div(a, b)


_ARITHMETIC: dict[str, Callable] = {
    "Add": lambda a, b: a + b,
    "Sub": lambda a, b: a - b,
    "Mul": lambda a, b: a * b,
    "Div": _int_div,
    "Min": dims.minimum,
    "Max": dims.maximum,
    "Mod": lambda a, b: a % b if isinstance(a, int) and isinstance(b, int) and a >= 0 and b > 0 else None,
    "And": lambda a, b: a and b,
    "Or": lambda a, b: a or b,
    "Xor": lambda a, b: a != b,
}


@rule("Add", "Sub", "Mul", "Div", "Pow", "Min", "Max", "Mod", "And", "Or", "Xor", "Sum", "Mean", "PRelu", "BitShift")
def arithmetic(call: Call) -> Fact:
    operands = [call[i] for i in range(len(call.inputs))]
    content = None
    function = _ARITHMETIC.get(call.node.op_type)
    if function is not None and len(operands) == 2:
        content = elementwise(function, operands[0].content, operands[1].content)
    elif len(operands) == 1:
        content = operands[0].content
    shape = broadcast_shape(*(o.shape for o in operands))
    return Fact(operands[0].dtype, shape, followed(shape, content))


def _less(a: Size, b: Size) -> bool | None:
    """a < b, where certain."""
    if dims.is_positive(b - a):
        return True
    return False if dims.is_nonnegative(a - b) else None


_COMPARISON: dict[str, Callable] = {
    "Equal": dims.equal,
    "Less": _less,
    "Greater": lambda a, b: _less(b, a),
    "LessOrEqual": lambda a, b: None if _less(b, a) is None else not _less(b, a),
    "GreaterOrEqual": lambda a, b: None if _less(a, b) is None else not _less(a, b),
}


@rule(*_COMPARISON)
def comparison(call: Call) -> Fact:
    content = elementwise(_COMPARISON[call.node.op_type], call[0].content, call[1].content)
    shape = broadcast_shape(call[0].shape, call[1].shape)
    return Fact(ir.DataType.BOOL, shape, followed(shape, content))


@rule("Where")
def where(call: Call) -> Fact:
    condition, a, b = call[0], call[1], call[2]
    content = None
    if condition.content is not None and a.content is not None and b.content is not None:
        choice = np.frompyfunc(lambda c, x, y: None if c is None else (x if c else y), 3, 1)
        content = np.asarray(choice(condition.content, a.content, b.content), dtype=object)
    shape = broadcast_shape(condition.shape, a.shape, b.shape)
    return Fact(a.dtype or b.dtype, shape, followed(shape, content))


@rule("Cast")
def cast(call: Call) -> Fact:
    to = ir.DataType(call.attr("to"))
    content = call[0].content
    if to == ir.DataType.BOOL:
        content = elementwise(lambda a: a if isinstance(a, bool) else _not_zero(a), content)
    elif to.is_integer():
        content = elementwise(lambda a: int(a) if isinstance(a, bool) else a, content)
    else:
        content = None
    return Fact(to, call[0].shape, content)


def _not_zero(a: Size) -> bool | None:
    same = dims.equal(a, 0)
    return None if same is None else not same


@rule("CastLike")
def cast_like(call: Call) -> Fact:
    return Fact(call[1].dtype, call[0].shape, call[0].content if call[0].dtype == call[1].dtype else None)
