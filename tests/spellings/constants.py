"""The forms in which a constant stands in a graph: stored, or computed from other constants."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from onnx import helper, numpy_helper

if TYPE_CHECKING:
    from spellings.draft import Draft, Value

WIDER = {"float16": "float32", "bfloat16": "float32", "float32": "float64", "int64": "int32", "bool": "int64"}
DEPTH = 2  # computed forms inside computed forms


def written(w: Draft, array: np.ndarray, depth: int = 0) -> Value:
    """`array` as an initializer, a Constant node, or a small graph of constants."""
    if depth < DEPTH and array.size and w.coin(0.25):
        forms = [form for form, applies in COMPUTED.items() if applies(array)]
        return w.pick(*forms)(w, array, depth + 1)
    attributes = _attributes(array)
    if attributes and w.coin(0.4):
        return w.node("Constant", shape=array.shape, dtype=array.dtype.name, **w.pick(*attributes))
    return w.initializer(array)


def _attributes(array: np.ndarray) -> list[dict[str, object]]:
    """The attributes of a Constant node that can hold `array`."""
    found: list[dict[str, object]] = [{"value": numpy_helper.from_array(np.array(array, order="C"))}]
    kind = {"float32": "value_float", "int64": "value_int"}.get(array.dtype.name)
    if kind and array.ndim == 0:
        found.append({kind: array.item()})
    if kind and array.ndim == 1 and 0 < array.size <= 64:
        found.append({f"{kind}s": array.tolist()})
    return found


def behind_identity(w: Draft, array: np.ndarray, depth: int) -> Value:
    return w.node("Identity", written(w, array, depth), shape=array.shape)


def converted(w: Draft, array: np.ndarray, depth: int) -> Value:
    """From a wider dtype."""
    source = written(w, array.astype(WIDER[array.dtype.name]), depth)
    to = helper.np_dtype_to_tensor_dtype(array.dtype)
    return w.node("Cast", source, shape=array.shape, dtype=array.dtype.name, to=to)


def unsqueezed(w: Draft, array: np.ndarray, depth: int) -> Value:
    source = written(w, array.reshape(array.shape[1:]), depth)
    return w.node("Unsqueeze", source, w.initializer(np.array([0])), shape=array.shape)


def reshaped(w: Draft, array: np.ndarray, depth: int) -> Value:
    source = written(w, array.reshape(-1), depth)
    return w.node("Reshape", source, w.initializer(np.array(array.shape, np.int64)), shape=array.shape)


def transposed(w: Draft, array: np.ndarray, depth: int) -> Value:
    """As PyTorch stores a Linear's weight."""
    return w.node("Transpose", written(w, array.T, depth), shape=array.shape, perm=[1, 0])


def concatenated(w: Draft, array: np.ndarray, depth: int) -> Value:
    cut = w.random.randrange(1, array.shape[0])
    parts = [written(w, array[:cut], depth), written(w, array[cut:], depth)]
    return w.node("Concat", *parts, shape=array.shape, axis=0)


def filled(w: Draft, array: np.ndarray, depth: int) -> Value:
    fill = numpy_helper.from_array(array.reshape(-1)[:1])
    shape = written(w, np.array(array.shape, np.int64), depth)
    return w.node("ConstantOfShape", shape, shape=array.shape, dtype=array.dtype.name, value=fill)


def summed(w: Draft, array: np.ndarray, depth: int) -> Value:
    part = written(w, array - 3, depth)
    return w.node("Add", part, written(w, np.full((), 3, array.dtype), depth), shape=array.shape)


def negated(w: Draft, array: np.ndarray, depth: int) -> Value:
    return w.node("Neg", written(w, -array, depth), shape=array.shape)


def sliced(w: Draft, array: np.ndarray, depth: int) -> Value:
    longer = np.concatenate([array, array[:1]])
    bounds = [w.initializer(np.array([v])) for v in (0, array.shape[0], 0)]
    return w.node("Slice", written(w, longer, depth), *bounds, shape=array.shape)


COMPUTED = {  # the computed forms, and which arrays they can make
    behind_identity: lambda a: True,
    converted: lambda a: a.dtype.name in WIDER and abs(a.astype(float)).max() < 2**31,
    unsqueezed: lambda a: a.ndim > 0 and a.shape[0] == 1,
    reshaped: lambda a: True,
    transposed: lambda a: a.ndim == 2,
    concatenated: lambda a: a.ndim > 0 and a.shape[0] > 1,
    filled: lambda a: bool((a == a.reshape(-1)[0]).all()),
    summed: lambda a: a.dtype.kind == "i" and abs(a).max() < 2**40,
    negated: lambda a: a.dtype.kind in "if" and a.dtype.name != "float16",
    sliced: lambda a: a.ndim > 0 and a.shape[0] > 0,
}
