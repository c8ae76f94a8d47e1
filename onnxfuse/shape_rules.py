"""What each operator does to dtypes, symbolic shapes and small integer contents.

One rule an operator: it takes a `Call` (a node with the facts of its inputs) and returns the facts of its outputs.
A rule returns None for what it does not know; it never guesses, with one exception: a Slice whose start is a run-time
value (a position in a rotary table) is taken to lie inside its tensor.

Source: the ONNX operator specification, opset 13 to 28, attribute and input forms alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from onnxfuse import dims
from onnxfuse.dims import Size

CONTENT_LIMIT = 64  # elements up to which an integer tensor's content is followed
SENTINEL = 2**31 - 1  # exporters write this or more (or its negative) for "to the end" in a Slice

Shape = tuple[Size, ...]


@dataclass(frozen=True)
class Fact:
    """What is known about one value. `content` is an object array of int, bool or Dim (None: that entry is unknown)."""

    dtype: ir.DataType | None = None
    shape: Shape | None = None
    content: np.ndarray | None = None

    @property
    def rank(self) -> int | None:
        return None if self.shape is None else len(self.shape)

    def integers(self) -> list[Size] | None:
        """The content as a flat list, if all of it is known."""
        if self.content is None:
            return None
        flat = list(self.content.reshape(-1))
        return None if any(entry is None for entry in flat) else flat


UNKNOWN = Fact()


@dataclass(frozen=True)
class Call:
    """A node and the facts of its inputs (None for an absent one)."""

    node: ir.Node
    inputs: tuple[Fact | None, ...]
    opset: int

    def __getitem__(self, index: int) -> Fact:
        fact = self.inputs[index] if index < len(self.inputs) else None
        return UNKNOWN if fact is None else fact

    def has(self, index: int) -> bool:
        return index < len(self.inputs) and self.inputs[index] is not None

    def attr(self, name: str, default=None):
        attribute = self.node.attributes.get(name)
        return default if attribute is None or attribute.is_ref() else attribute.value

    def listed(self, name: str, index: int) -> list[Size] | None:
        """A list of integers that older opsets have as attribute `name` and newer ones as input `index`."""
        attribute = self.attr(name)
        if attribute is not None:
            return list(attribute)
        return self[index].integers() if self.has(index) else None

    def fresh(self, rank: int, output: int = 0) -> Shape:
        """A shape of which only the rank is known."""
        name = self.node.outputs[output].name
        return tuple(dims.symbol(f"{name}:{axis}") for axis in range(rank))


Rule = Callable[[Call], "Fact | Sequence[Fact] | None"]
RULES: dict[str, Rule] = {}


def rule(*op_types: str) -> Callable[[Rule], Rule]:
    def register(function: Rule) -> Rule:
        for op_type in op_types:
            RULES[op_type] = function
        return function

    return register


def array(values: object) -> np.ndarray:
    """An object array holding `values` (nested lists of int, bool, Dim, None)."""
    return np.array(values, dtype=object)


def followed(shape: Shape | None, content: np.ndarray | None) -> np.ndarray | None:
    """`content` unless it is too large to follow."""
    return content if content is not None and content.size <= CONTENT_LIMIT else None


def elementwise(function: Callable, *operands: np.ndarray | None) -> np.ndarray | None:
    """Apply a function of scalars under broadcasting; unknown where an operand is."""
    if any(o is None for o in operands):
        return None

    def apply(*entries):
        return None if any(e is None for e in entries) else function(*entries)

    try:
        return np.asarray(np.frompyfunc(apply, len(operands), 1)(*operands), dtype=object)
    except ValueError:
        return None


def broadcast_shape(*shapes: Shape | None) -> Shape | None:
    """The shape of numpy broadcasting."""
    if any(s is None for s in shapes):
        return None
    rank = max(map(len, shapes))
    padded = [(1,) * (rank - len(s)) + tuple(s) for s in shapes]
    joined = padded[0]
    for other in padded[1:]:
        joined = tuple(dims.broadcast(a, b) for a, b in zip(joined, other, strict=True))
    return joined


def product(sizes: Sequence[Size]) -> Size:
    total: Size = 1
    for size in sizes:
        total = total * size
    return total


# ---- elementwise -----------------------------------------------------------------------------------------------------


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
        return None if not (isinstance(a, int) and isinstance(b, int) and b) else int(a / b)
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


# ---- shapes as data --------------------------------------------------------------------------------------------------


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
        return Fact(dtype, _ranked(call, call[0]))
    content = None
    if all(isinstance(s, int) for s in shape) and product(shape) <= CONTENT_LIMIT and is_followed(dtype):
        content = np.full(shape, value.numpy().reshape(-1)[0].item(), dtype=object)
    return Fact(dtype, tuple(shape), content)


def is_followed(dtype: ir.DataType | None) -> bool:
    """Whether contents of this dtype are followed: integers and booleans."""
    return dtype is not None and (dtype.is_integer() or dtype == ir.DataType.BOOL)


def _ranked(call: Call, target: Fact) -> Shape | None:
    """A fresh shape whose rank is the length of the one-dimensional `target`."""
    if target.shape is None or len(target.shape) != 1 or not isinstance(target.shape[0], int):
        return None
    return call.fresh(target.shape[0])


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


# ---- movement --------------------------------------------------------------------------------------------------------


@rule("Gather")
def gather(call: Call) -> Fact:
    data, indices = call[0], call[1]
    if data.shape is None or indices.shape is None:
        return Fact(data.dtype)
    axis = call.attr("axis", 0) % len(data.shape)
    shape = data.shape[:axis] + indices.shape + data.shape[axis + 1 :]
    content = None
    picks = indices.integers()
    if data.content is not None and picks is not None and all(isinstance(p, int) for p in picks):
        index = np.array(picks, dtype=np.int64).reshape(indices.content.shape)
        content = np.asarray(np.take(data.content, index, axis=axis), dtype=object)
    return Fact(data.dtype, shape, content)


@rule("GatherND")
def gather_nd(call: Call) -> Fact:
    data, indices, batch = call[0], call[1], call.attr("batch_dims", 0)
    if data.shape is None or indices.shape is None or not isinstance(indices.shape[-1], int):
        return Fact(data.dtype)
    return Fact(data.dtype, indices.shape[:-1] + data.shape[batch + indices.shape[-1] :])


@rule("GatherElements")
def gather_elements(call: Call) -> Fact:
    return Fact(call[0].dtype, call[1].shape)


@rule("Concat")
def concat(call: Call) -> Fact:
    facts = [call[i] for i in range(len(call.inputs))]
    known = [f for f in facts if f.shape is not None]
    if not known:
        return Fact(facts[0].dtype)
    axis = call.attr("axis") % len(known[0].shape)
    if len(known) < len(facts):
        return Fact(facts[0].dtype, call.fresh(len(known[0].shape)))
    total: Size = 0
    for fact in facts:
        total = total + fact.shape[axis]
    # off the axis all inputs agree in any valid run: the first plain integer says most
    shape = tuple(
        total if i == axis else next((s for s in sizes if isinstance(s, int)), sizes[0])
        for i, sizes in enumerate(zip(*(f.shape for f in facts), strict=True))
    )
    content = None
    if is_followed(facts[0].dtype) and isinstance(total, int) and len(shape) == 1 and total <= CONTENT_LIMIT:
        content = np.concatenate([_entries(f) for f in facts])
    return Fact(facts[0].dtype, shape, content)


def _entries(fact: Fact) -> np.ndarray:
    """The content of a one-dimensional value, unknown entries included."""
    return fact.content if fact.content is not None else np.full(fact.shape, None, dtype=object)


@rule("Slice")
def slice_of(call: Call) -> Fact:
    data = call[0]
    if data.shape is None:
        return Fact(data.dtype)
    starts, ends = call.listed("starts", 1), call.listed("ends", 2)
    axes = call.listed("axes", 3)
    steps = call[4].integers() if call.has(4) else None
    if starts is None or ends is None or (axes is None and call.has(3)) or (steps is None and call.has(4)):
        return Fact(data.dtype, _sliced_unknown(call, axes))
    axes = [a % len(data.shape) for a in axes] if axes else list(range(len(starts)))
    steps = steps or [1] * len(starts)
    shape, index = list(data.shape), [slice(None)] * len(data.shape)
    content = data.content
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        length = slice_length(data.shape[axis], start, end, step)
        shape[axis] = length if length is not None else call.fresh(len(shape))[axis]
        if isinstance(start, int) and isinstance(end, int):
            index[axis] = slice(start if abs(start) < SENTINEL else (None if start < 0 else SENTINEL), _stop(end), step)
        else:
            content = None
    return Fact(data.dtype, tuple(shape), None if content is None else content[tuple(index)])


def _stop(end: int) -> int | None:
    return None if abs(end) >= SENTINEL else end


def _sliced_unknown(call: Call, axes: list[Size] | None) -> Shape:
    shape, fresh = call[0].shape, call.fresh(len(call[0].shape))
    if axes is None:
        return fresh
    touched = {a % len(shape) for a in axes}
    return tuple(fresh[i] if i in touched else s for i, s in enumerate(shape))


def slice_length(size: Size, start: Size, end: Size, step: int) -> Size | None:
    """The number of entries that a Slice keeps of an axis with `size` entries, None if it can't be told."""
    if all(isinstance(v, int) for v in (size, start, end, step)):
        return len(range(size)[slice(start if abs(start) < SENTINEL else None, _stop(end), step)])
    if not isinstance(step, int) or step < 1:
        return None
    if isinstance(start, int) and start < 0:
        start = 0 if start <= -SENTINEL else size + start
    if isinstance(end, int):
        end = size if end >= SENTINEL else size + end if end < 0 else end
    if any(atom.op == "value" for atom in _atoms(start)):
        length = end - start  # assumed to lie inside: see the module's docstring
    elif dims.is_nonnegative(start):
        length = dims.minimum(end, size) - start
    else:
        return None
    if not dims.is_nonnegative(length):
        length = dims.maximum(length, 0)
    return length if step == 1 else dims.floor_div(length + (step - 1), step)


def _atoms(value: Size):
    return [] if isinstance(value, int) else [atom for monomial, _ in value.terms for atom in monomial]


@rule("Split")
def split(call: Call) -> Sequence[Fact]:
    data, count = call[0], len(call.node.outputs)
    if data.shape is None:
        return [Fact(data.dtype)] * count
    axis = call.attr("axis", 0) % len(data.shape)
    parts = call.listed("split", 1)
    if parts is None:
        size = data.shape[axis]
        if isinstance(size, int):
            chunk = -(-size // count)
            parts = [min(chunk, size - i * chunk) for i in range(count)]
        else:
            parts = [call.fresh(len(data.shape), i)[axis] for i in range(count)]
    return [Fact(data.dtype, (*data.shape[:axis], part, *data.shape[axis + 1 :])) for part in parts]


@rule("Unsqueeze")
def unsqueeze(call: Call) -> Fact:
    axes = call.listed("axes", 1)
    if call[0].shape is None or axes is None:
        return Fact(call[0].dtype)
    rank = len(call[0].shape) + len(axes)
    axes = sorted(a % rank for a in axes)
    shape = list(call[0].shape)
    content = call[0].content
    for axis in axes:
        shape.insert(axis, 1)
        content = None if content is None else np.expand_dims(content, axis)
    return Fact(call[0].dtype, tuple(shape), content)


@rule("Squeeze")
def squeeze(call: Call) -> Fact:
    shape = call[0].shape
    if shape is None:
        return Fact(call[0].dtype)
    axes = call.listed("axes", 1)
    if axes is None:
        if call.has(1) or not all(isinstance(s, int) for s in shape):
            return Fact(call[0].dtype)  # which symbolic sizes are one is not known
        axes = [i for i, s in enumerate(shape) if s == 1]
    gone = {a % len(shape) for a in axes}
    kept = tuple(s for i, s in enumerate(shape) if i not in gone)
    content = call[0].content
    return Fact(call[0].dtype, kept, None if content is None else content.reshape(kept))


@rule("Reshape")
def reshape(call: Call) -> Fact:
    data, target = call[0], call[1].integers() if call[1].content is not None else None
    entries = None if call[1].content is None else list(call[1].content.reshape(-1))
    if entries is None or data.shape is None:
        return Fact(data.dtype, _ranked(call, call[1]) if entries is None else call.fresh(len(entries)))
    if target is None:
        fresh = call.fresh(len(entries))
        return Fact(data.dtype, tuple(f if e is None else e for f, e in zip(fresh, entries, strict=True)))
    shape = reshaped(data.shape, target, bool(call.attr("allowzero", 0)))
    if shape is None:
        return Fact(data.dtype, call.fresh(len(target)))
    content = data.content
    if content is not None:
        content = content.reshape(-1).reshape([s if isinstance(s, int) else -1 for s in shape])
    return Fact(data.dtype, shape, content)


def reshaped(shape: Shape, target: Sequence[Size], allow_zero: bool) -> Shape | None:
    """The shape that Reshape gives: 0 copies (unless `allow_zero`), -1 takes what is left."""
    out: list[Size] = [shape[i] if t == 0 and not allow_zero and i < len(shape) else t for i, t in enumerate(target)]
    if -1 in out:
        hole = out.index(-1)
        # sizes that stand on both sides cancel, which keeps the quotient exact for any polynomial
        total, rest = list(shape), [s for i, s in enumerate(out) if i != hole]
        for size in list(rest):
            if size in total:
                total.remove(size)
                rest.remove(size)
        denominator = product(rest)
        if denominator == 0:
            return None
        out[hole] = dims.floor_div(product(total), denominator)
    return tuple(out)


@rule("Flatten")
def flatten(call: Call) -> Fact:
    shape = call[0].shape
    if shape is None:
        return Fact(call[0].dtype, call.fresh(2))
    axis = call.attr("axis", 1)
    axis = axis % len(shape) if axis < 0 else axis
    return Fact(call[0].dtype, (product(shape[:axis]), product(shape[axis:])))


@rule("Transpose")
def transpose(call: Call) -> Fact:
    shape = call[0].shape
    if shape is None:
        return Fact(call[0].dtype)
    perm = call.attr("perm", list(reversed(range(len(shape)))))
    content = call[0].content
    return Fact(call[0].dtype, tuple(shape[p] for p in perm), None if content is None else content.transpose(perm))


@rule("Expand")
def expand(call: Call) -> Fact:
    data, target = call[0], call[1].integers()
    if target is None or data.shape is None:
        ranked = _ranked(call, call[1])
        return Fact(data.dtype, ranked if ranked is None or data.rank is None or len(ranked) >= data.rank else None)
    shape = broadcast_shape(data.shape, tuple(target))
    content = None
    if data.content is not None and all(isinstance(s, int) for s in shape) and product(shape) <= CONTENT_LIMIT:
        content = np.broadcast_to(data.content, shape)
    return Fact(data.dtype, shape, content)


@rule("Tile")
def tile(call: Call) -> Fact:
    repeats = call[1].integers()
    if call[0].shape is None or repeats is None:
        return Fact(call[0].dtype, None if call[0].shape is None else call.fresh(len(call[0].shape)))
    return Fact(call[0].dtype, tuple(s * r for s, r in zip(call[0].shape, repeats, strict=True)))


# ---- contraction -----------------------------------------------------------------------------------------------------


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
    if axes is None:
        if call.has(1):
            return Fact(call[0].dtype)
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


# ---- attention and the project's own operators -----------------------------------------------------------------------


@rule("GatedMLP")
def gated_mlp(call: Call) -> Fact:
    x, down = call[0].shape, call[3].shape
    if x is None or down is None:
        return Fact(call[0].dtype)
    return Fact(call[0].dtype, (*x[:-1], down[-1] if len(down) == 2 else down[0] * down[2]))


@rule("RotaryTable")
def rotary_table(call: Call) -> Sequence[Fact]:
    positions, frequencies = call[0].shape, call[1].shape
    shape = None if positions is None or frequencies is None else (*positions, frequencies[0])
    return [Fact(ir.DataType.FLOAT, shape)] * 2


@rule("Attention")
def attention(call: Call) -> Sequence[Fact]:
    """ai.onnx Attention-23 and onnxfuse Attention share ranks and head attributes; the past's place differs."""
    q, k, v = (call[i].shape for i in range(3))
    ours = call.node.domain == "onnxfuse"
    past_index = 3 if ours else 4
    heads = call.attr("num_heads" if ours else "q_num_heads")
    kv_heads = call.attr("kv_num_heads")
    outputs = [Fact(call[0].dtype)] * len(call.node.outputs)
    if q is None or k is None or v is None or (len(q) == 3 and not heads) or (3 in (len(k), len(v)) and not kv_heads):
        return outputs

    def heads_first(shape: Shape, count: int) -> Shape:
        return shape if len(shape) == 4 else (shape[0], count, shape[1], dims.floor_div(shape[2], count))

    k4, v4 = heads_first(k, kv_heads), heads_first(v, kv_heads)
    value_size = v4[3]
    y = (*q[:-1], value_size) if len(q) == 4 else (*q[:-1], heads * value_size)
    facts = [Fact(call[0].dtype, y)]
    if ours and call.attr("shared_cache", 0):
        facts += [
            Fact(call[past_index].dtype, call[past_index].shape),
            Fact(call[past_index + 1].dtype, call[past_index + 1].shape),
        ]
    else:
        past = call[past_index].shape[2] if call.has(past_index) and call[past_index].shape else 0
        facts += [Fact(call[1].dtype, (*s[:2], past + s[2], s[3])) for s in (k4, v4)]
    return [*facts, Fact(call[0].dtype)][: len(call.node.outputs)]


@rule("GroupQueryAttention", "MultiHeadAttention")
def microsoft_attention(call: Call) -> Fact:
    """com.microsoft's operators take [B, S, N*D] or q, k and v packed into one tensor, and give [B, S, N*D]."""
    q, heads = call[0].shape, call.attr("num_heads")
    if q is None or len(q) != 3 or not heads:
        return Fact(call[0].dtype)
    packed = not call.has(1)
    parts = heads + 2 * call.attr("kv_num_heads", heads) if packed else heads
    return Fact(call[0].dtype, (q[0], q[1], heads * dims.floor_div(q[2], parts)))
