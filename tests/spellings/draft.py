"""A graph written step by step: nodes, constants in any form, and nodes now and then that do nothing."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import ml_dtypes  # noqa: F401  makes numpy know bfloat16
import numpy as np
import onnx
from onnx import helper, numpy_helper

from spellings import constants
from spellings.sizes import Dim

DTYPES = {
    "float32": onnx.TensorProto.FLOAT,
    "float16": onnx.TensorProto.FLOAT16,
    "bfloat16": onnx.TensorProto.BFLOAT16,
    "float64": onnx.TensorProto.DOUBLE,
    "int64": onnx.TensorProto.INT64,
    "int32": onnx.TensorProto.INT32,
    "bool": onnx.TensorProto.BOOL,
}
MICROSOFT = {"QuickGelu", "SkipSimplifiedLayerNormalization"}
HALF = ("float16", "bfloat16")
FLOATING = ("float32", *HALF)
TO_THE_END = (2**63 - 1, 2**31 - 1)  # what exporters write for the end of an axis


@dataclass(frozen=True)
class Value:
    """A value of the graph; a str in `shape` is a size that the model leaves open."""

    name: str
    dtype: str
    shape: tuple[Dim, ...]

    @property
    def rank(self) -> int:
        return len(self.shape)


@dataclass
class Draft:
    """Nodes of one case. All names start with `prefix`, so that many cases fit into one model.

    What the function is comes from one stream of random numbers (`fixed`, `weight`), how it is spelled from another
    (`pick`, `coin`): a mutation changes the function in one place and leaves the rest of it alone.
    """

    seed: int
    opset: int
    dtype: str = "float32"
    prefix: str = ""
    mutation: str | None = None
    noise: float = 0.04
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    functions: list[onnx.FunctionProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)
    inputs: list[Value] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)
    stems: dict[str, str] = field(default_factory=dict)  # what an input is called in every case of the family
    feeders: dict[str, Callable] = field(default_factory=dict)  # how to draw inputs that are no plain numbers
    mutations: list[str] = field(default_factory=list)  # that the case was asked for
    shifts: list[str] = field(default_factory=list)
    forbidden: set[str] = field(default_factory=set)  # operators that the mutation leaves no place for

    seen: Callable | None = None  # (sizes, feeds) -> [B, S] bool: the rows of the first output that are defined
    seen_axis: int = 1  # of S in that output

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.function = random.Random(f"function {self.seed}")
        self.arrays = np.random.default_rng(self.seed)
        self._count = 0

    # ---- chance ------------------------------------------------------------------------------------------------------

    def coin(self, chance: float = 0.5) -> bool:
        return self.random.random() < chance

    def pick(self, *options):
        return self.random.choice(options)

    def fixed(self, *options):
        """A property of the function, however it is spelled."""
        return self.function.choice(options)

    def mutates(self, name: str, *operators: str) -> bool:
        """Whether to leave here what these operators can compute."""
        self.mutations.append(name)
        if name == self.mutation:
            self.forbidden.update(operators)
        return name == self.mutation

    def shifts_to(self, name: str) -> bool:
        """Whether to become another function of the same kind here: the operator may serve with other inputs."""
        self.shifts.append(name)
        return name == self.mutation

    # ---- the graph ---------------------------------------------------------------------------------------------------

    def name(self, stem: str) -> str:
        self._count += 1
        return f"{self.prefix}{stem}_{self._count}"

    def input(self, stem: str, shape: Sequence[Dim], dtype: str | None = None) -> Value:
        """A graph input."""
        value = Value(self.name(stem), dtype or self.dtype, tuple(shape))
        self.inputs.append(value)
        self.stems[value.name] = stem
        return value

    def output(self, value: Value) -> Value:
        """`value` becomes a graph output."""
        if value in self.outputs or value in self.inputs:
            value = self.node("Identity", value, shape=value.shape)
        self.outputs.append(value)
        return value

    def initializer(self, array: np.ndarray) -> Value:
        """A weight as the graph stores it."""
        name = self.name("weight")
        self.initializers.append(numpy_helper.from_array(np.array(array, order="C"), name))
        return Value(name, array.dtype.name, array.shape)

    def weight(self, *shape: int, scale: float | None = None, offset: float = 0.0) -> np.ndarray:
        """Random weights that keep the size of what they are multiplied with."""
        scale = shape[0] ** -0.5 if scale is None else scale
        return (offset + scale * self.arrays.standard_normal(shape)).astype(self.dtype)

    def node(self, op: str, *inputs: Value | None, shape, dtype: str | None = None, outputs: int = 1, **attributes):
        """One node; `shape` is that of its output, or a list with one entry an output, None where it is left out."""
        domain = "com.microsoft" if op in MICROSOFT else ""
        dtype = dtype or inputs[0].dtype
        shapes = shape if outputs > 1 else [shape]
        made = [None if s is None else Value(self.name(op.lower()), dtype, tuple(s)) for s in shapes]
        proto = helper.make_node(
            op,
            ["" if v is None else self._noisy(v).name for v in inputs],
            ["" if v is None else v.name for v in made],
            name=self.name(f"node_{op}"),
            domain=domain,
            **attributes,
        )
        self.nodes.append(proto)
        return made if outputs > 1 else made[0]

    def constant(self, values: object, dtype: str | None = None) -> Value:
        """A constant in any form; of the case's dtype where none is given."""
        array = np.asarray(values, dtype=np.dtype(dtype or self.dtype))
        return constants.written(self, array)

    def integers(self, *values: int) -> Value:
        """A list of integers, in any form."""
        return self.constant(list(values), "int64")

    def scalar(self, number: float, beside: Value, dtype: str | None = None) -> Value:
        """A number that is broadcast against `beside`: of rank 0, 1 or more."""
        rank = min(self.pick(0, 0, 0, 1, 1, 2), beside.rank)
        return self.constant(np.full((1,) * rank, number), dtype or beside.dtype)

    def scalar_of(self, number: float, dtype: str) -> Value:
        """A number of rank 0 or 1."""
        return self.constant(np.full((1,) * self.pick(0, 0, 1), number), dtype)

    # ---- what does nothing -------------------------------------------------------------------------------------------

    def _noisy(self, value: Value) -> Value:
        """`value`, now and then behind nodes that keep it as it is."""
        if value.dtype not in FLOATING or not self.coin(self.noise):
            return value
        kinds = ["Identity", "Cast", "Dropout", "Reshape", "Transpose", "Unsqueeze", "Neutral", "Slice", "Concat", "Up"]
        chosen, self.noise, noise = self.pick(*kinds), 0.0, self.noise
        try:
            return self._unchanged(value, chosen)
        finally:
            self.noise = noise

    def _unchanged(self, value: Value, kind: str) -> Value:
        shape, dtype = value.shape, value.dtype
        if kind == "Dropout":
            ratio, off = self.initializer(np.array(0.1, np.float32)), self.initializer(np.array(False))
            return self.node("Dropout", value, ratio, *([off] if self.coin() else []), shape=shape)
        if kind == "Cast":
            return self.node("Cast", value, shape=shape, to=DTYPES[dtype])
        if kind == "Up" and dtype in HALF:
            wide = self.node("Cast", value, shape=shape, dtype="float32", to=DTYPES["float32"])
            return self.node("Cast", wide, shape=shape, dtype=dtype, to=DTYPES[dtype])
        if kind == "Reshape" and value.rank:
            target = self.node("Shape", value, shape=(value.rank,), dtype="int64")
            return self.node("Reshape", value, target, shape=shape)
        if kind == "Transpose" and value.rank > 1:
            perm = self.random.sample(range(value.rank), value.rank)
            back = [perm.index(i) for i in range(value.rank)]
            turned = self.node("Transpose", value, shape=[shape[p] for p in perm], perm=perm)
            return self.node("Transpose", turned, shape=shape, perm=back)
        if kind == "Unsqueeze":
            axis = self.random.randint(0, value.rank)
            wide = self.node("Unsqueeze", value, self.integers(axis), shape=(*shape[:axis], 1, *shape[axis:]))
            return self.node("Squeeze", wide, self.integers(axis), shape=shape)
        if kind == "Neutral":
            op, number = self.pick(("Mul", 1), ("Div", 1), ("Add", 0), ("Sub", 0))
            return self.node(op, value, self.constant(number, dtype), shape=shape)
        if kind == "Slice" and value.rank:
            bounds = [self.integers(0), self.integers(self.pick(*TO_THE_END)), self.integers(-1)]
            return self.node("Slice", value, *bounds, shape=shape)
        if kind == "Concat" and value.rank:
            return self.node("Concat", value, shape=shape, axis=-1)
        return self.node("Identity", value, shape=shape)
