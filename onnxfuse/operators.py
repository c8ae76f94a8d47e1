"""What the ONNX standard says about an operator: parameters, defaults, axes. Answers for any operator set version."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import onnx
import onnx_ir as ir

OpId = tuple[str, str]  # domain, operator type

COMMUTATIVE = frozenset({"Add", "Mul", "Min", "Max", "And", "Or", "Xor", "Equal"})

# Dear to compute: such a node must not stay beside the fused node that computes the same again.
EXPENSIVE = frozenset(
    {"MatMul", "Gemm", "Conv", "ConvTranspose", "Softmax", "LogSoftmax", "Attention", "Einsum", "LSTM", "GRU", "RNN"}
    | {"MatMulInteger", "QLinearMatMul", "QLinearConv", "ConvInteger", "If", "Loop", "Scan"}
)

# Found all over a transformer: that a pattern's products and reshapes are there does not make a place look like it.
COMMONPLACE = frozenset(
    {"Add", "Sub", "Mul", "Div", "Neg", "Pow", "MatMul", "Cast", "Identity", "Reshape", "Transpose", "Squeeze"}
    | {"Unsqueeze", "Expand", "Concat", "Slice", "Split", "Gather", "Where"}
)
STANDARD = ""
OWN = "onnxfuse"
NEWEST_OPSET = 28  # of the operators of ONNX that patterns name: its SwiGLU
UNLISTED = frozenset({"SimplifiedLayerNormalization"})  # ONNX Runtime's own, in the standard's domain all the same

# What ONNX Runtime takes where its own operators' attributes are left out, of those that patterns name.
DEFAULTS_OF_ONNX_RUNTIME: dict[OpId, dict[str, object]] = {
    ("", "SimplifiedLayerNormalization"): {"axis": -1, "epsilon": 1e-5, "stash_type": 1},
    ("com.microsoft", "SkipSimplifiedLayerNormalization"): {"epsilon": 1e-12},
    ("com.microsoft", "QuickGelu"): {"alpha": 1.702},
    ("com.microsoft", "MultiHeadAttention"): {"mask_filter_value": -10000.0, "scale": None, "unidirectional": 0},
    ("com.microsoft", "RotaryEmbedding"): {
        "interleaved": 0,
        "is_packed_batching": 0,
        "num_heads": 0,
        "rotary_embedding_dim": 0,
        "scale": 1.0,
    },
}

# Parameters whose order carries no meaning.
_UNORDERED_AXES = ("Reduce", "Squeeze", "Unsqueeze")


@functools.cache
def schema(domain: str, op_type: str, opset: int | None = None) -> onnx.defs.OpSchema | None:
    """The definition in force at `opset` (None: the newest), None for an operator the standard does not know."""
    try:
        if opset is None:
            return onnx.defs.get_schema(op_type, domain)
        return onnx.defs.get_schema(op_type, opset, domain)
    except onnx.defs.SchemaError:
        return None


def is_newer(domain: str, op_type: str) -> bool:
    """Whether the installed onnx is older than this operator of ONNX: it accepts no model that has one.

    An onnx that is as new as the patterns knows all that they name; what it does not know is misspelt.
    """
    is_unknown = domain == STANDARD and op_type not in UNLISTED and schema(domain, op_type) is None
    return is_unknown and onnx.defs.onnx_opset_version() < NEWEST_OPSET


@functools.cache
def input_index(op_type: str, name: str) -> int | None:
    """The position of the input `name` of a standard operator in any of its versions, None if it has none."""
    newest = schema(STANDARD, op_type)
    names = [parameter.name for parameter in newest.inputs] if newest else []
    return names.index(name) if name in names else None


@functools.cache
def input_name(op_type: str, index: int) -> str | None:
    """The name of input `index` of a standard operator, None beyond its last or for a variadic one."""
    newest = schema(STANDARD, op_type)
    if newest is None or index >= len(newest.inputs):
        return None
    return newest.inputs[index].name


@functools.cache
def required_attributes(op_type: str) -> frozenset[str]:
    """The attributes a standard operator cannot do without."""
    newest = schema(STANDARD, op_type)
    return (
        frozenset(name for name, attribute in newest.attributes.items() if attribute.required)
        if newest
        else frozenset()
    )


@functools.cache
def names_dtype(domain: str, op_type: str, name: str) -> bool:
    """Whether the attribute `name` holds the number of a dtype (Cast.to, EyeLike.dtype)."""
    newest = schema(domain, op_type)
    return name in ("to", "dtype", "output_dtype") and bool(newest and name in newest.attributes)


@functools.cache
def known_parameters(op_type: str) -> frozenset[str]:
    """Every attribute and input name of a standard operator in any version since opset 1."""
    names: set[str] = set()
    newest = schema(STANDARD, op_type)
    opset = newest.since_version if newest else 0
    while opset > 0:
        definition = schema(STANDARD, op_type, opset)
        if definition is None:
            break
        names.update(definition.attributes)
        names.update(parameter.name for parameter in definition.inputs)
        opset = definition.since_version - 1
    return frozenset(names)


@functools.cache
def has_variadic_outputs(op_type: str) -> bool:
    """Whether the number of outputs is part of the meaning (Split)."""
    newest = schema(STANDARD, op_type)
    return bool(
        newest and newest.outputs and newest.outputs[-1].option == onnx.defs.OpSchema.FormalParameterOption.Variadic
    )


@functools.cache
def defaults(domain: str, op_type: str, opset: int) -> dict[str, object] | None:
    """Attribute defaults at `opset`; an optional attribute without default maps to None. None: unknown operator."""
    definition = schema(domain, op_type, opset)
    if definition is None:
        return DEFAULTS_OF_ONNX_RUNTIME.get((domain, op_type))
    found: dict[str, object] = {}
    for name, attribute in definition.attributes.items():
        if attribute.required:
            continue
        has_default = attribute.default_value.type != onnx.AttributeProto.UNDEFINED
        found[name] = plain(onnx.helper.get_attribute_value(attribute.default_value)) if has_default else None
    return found


def plain(value: object) -> object:
    """An attribute value as plain Python data: bytes become str, sequences tuples."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(plain(item) for item in value)
    return value


def canonical_axes(op_type: str, name: str, value: object, rank: int | None) -> object:
    """`axis` and `axes` counted from the front where the rank is known, sorted where their order means nothing.

    `rank` is the rank of the tensor that the axes count in: the output for Unsqueeze, else the first input.
    """
    if isinstance(value, int):
        return value + rank if rank is not None and value < 0 else value
    if not isinstance(value, tuple) or not all(isinstance(axis, int) for axis in value):
        return value
    axes = tuple(axis + rank if rank is not None and axis < 0 else axis for axis in value)
    return tuple(sorted(axes)) if name == "axes" and op_type.startswith(_UNORDERED_AXES) else axes


_DTYPE_NAMES = {ir.DataType.FLOAT: "float32", ir.DataType.DOUBLE: "float64"}
_DTYPES = {_DTYPE_NAMES.get(dtype, dtype.name.lower()): dtype for dtype in ir.DataType}


def dtype_name(dtype: ir.DataType | None) -> str | None:
    """`float32` for ir.DataType.FLOAT and so on, None for an unknown type."""
    return None if dtype is None else _DTYPE_NAMES.get(dtype, dtype.name.lower())


def dtype_from_name(name: str) -> ir.DataType:
    """The inverse of `dtype_name`; raises ValueError for an unknown name."""
    if name not in _DTYPES:
        raise ValueError(f"unknown dtype {name!r}; known are {', '.join(_DTYPES)}")
    return _DTYPES[name]


def is_expensive(node: ir.Node) -> bool:
    """Whether computing `node` a second time would cost more than a pass over its inputs."""
    if node.domain == STANDARD:
        return node.op_type in EXPENSIVE
    return True
