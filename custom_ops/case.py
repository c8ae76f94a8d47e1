"""One case of an operator: inputs, attributes and tolerance. The tests and the benchmark use the same cases."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from onnxfuse.custom_ops.body import DOMAIN

DTYPES = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
EPSILON = {name: float(ml_dtypes.finfo(dtype).eps) for name, dtype in DTYPES.items()}  # spacing of numbers at 1
TF32_EPSILON = 2.0**-10  # of float32 as tensor cores multiply it where a CUDA session allows that
INT8_RMS = 128 / math.sqrt(3)  # of the numbers that a Random of int8 has

# T and the dtype of a weight or table: the mixes that the kernels take.
MIXED_DTYPES = [
    ("float32", "float32"),
    ("float16", "float16"),
    ("float16", "float32"),
    ("bfloat16", "bfloat16"),
    ("bfloat16", "float32"),
]


@dataclass(frozen=True)
class Random:
    """A tensor of normally distributed numbers; int8 are all equally likely, whatever the `scale`."""

    shape: tuple[int, ...]
    dtype: str = "float32"
    scale: float = 1.0


@dataclass(frozen=True)
class Case:
    """What to run an operator on, and how well the result must agree with reference.py.

    `inputs` are by name in order; None is an absent optional input, an array is taken as it is. `outputs` gives the
    dtype of every output by name, None of an absent one before the last. A result may differ from the reference by
    `absolute + relative * |reference|`; the function body, run with the runtime's own and perhaps less exact operators,
    by `body_absolute` more; a CUDA kernel, whose tensor cores take the intermediate results in the dtype of the inputs,
    by `cuda_absolute` more, and by `tf32_absolute` where the session lets it round factors of float32 to TF32.
    Set `benchmark` on the shapes worth timing, and `device`, "cpu" or "cuda", on those that only one is for; `flops`
    says what arithmetic they take, 0 where memory traffic decides: that of all inputs and outputs, unless `traffic`
    says how many bytes.
    """

    name: str
    inputs: Mapping[str, Random | np.ndarray | None]
    outputs: Mapping[str, str | None]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    relative: float = 0.0
    absolute: float = 0.0
    body_absolute: float = 0.0
    cuda_absolute: float = 0.0
    tf32_absolute: float = 0.0
    benchmark: bool = False
    device: str | None = None
    flops: float = 0.0
    traffic: int = 0

    def __str__(self) -> str:
        return self.name

    @property
    def made(self) -> dict[str, str]:
        """The outputs that the node has, with their dtypes."""
        return {name: dtype for name, dtype in self.outputs.items() if dtype is not None}

    def of_node(self, results: Sequence[np.ndarray | None]) -> tuple[np.ndarray, ...]:
        """Those of the reference's results, which are all that the operator may have, that the node makes."""
        return tuple(x for x, dtype in zip(results, self.outputs.values(), strict=False) if dtype is not None)

    def arrays(self) -> dict[str, np.ndarray | None]:
        """The inputs; the same ones at every call."""
        generator = np.random.default_rng(0)

        def array(spec: Random | np.ndarray | None) -> np.ndarray | None:
            if not isinstance(spec, Random):
                return spec
            if spec.dtype == "int8":
                return generator.integers(-128, 128, spec.shape, np.int8)
            values = generator.standard_normal(spec.shape, dtype=np.float32) * np.float32(spec.scale)
            return np.asarray(values, DTYPES[spec.dtype])

        return {name: array(spec) for name, spec in self.inputs.items()}


def _dtype(spec: Random | np.ndarray) -> ir.DataType:
    return ir.DataType.from_numpy(
        np.dtype(DTYPES.get(spec.dtype, spec.dtype) if isinstance(spec, Random) else spec.dtype)
    )


def single_node_model(
    operator: str, case: Case, opset: int, shapes: Sequence[tuple[int, ...]] | None = None
) -> ir.Model:
    """A model of one node named "the_node" of `operator` with the inputs of `case`, without a function body.

    `shapes` are those of the outputs, not stated in the model by default.
    """
    inputs = [None if spec is None else ir.val(name, _dtype(spec), spec.shape) for name, spec in case.inputs.items()]
    outputs = [ir.val(name, ir.DataType.from_numpy(DTYPES[dtype])) for name, dtype in case.made.items()]
    for value, shape in zip(outputs, shapes or (), strict=shapes is not None):
        value.shape = ir.Shape(shape)
    given = iter(outputs)
    slots = [ir.Value(name="") if dtype is None else next(given) for dtype in case.outputs.values()]
    node = ir.node(operator, inputs, dict(case.attributes), domain=DOMAIN, name="the_node", outputs=slots)
    present = [value for value in inputs if value is not None]
    graph = ir.Graph(present, outputs, nodes=[node], opset_imports={"": opset, DOMAIN: 1}, name=case.name)
    return ir.Model(graph, ir_version=10)


def widen_edges(model: ir.Model) -> None:
    """Makes inputs and outputs of bfloat16, which numpy does not know, float32, with Casts inside."""
    graph = model.graph
    for values, is_input in ((graph.inputs, True), (graph.outputs, False)):
        for i, value in enumerate(values):
            if value.dtype != ir.DataType.BFLOAT16:
                continue
            wide = values[i] = ir.val(f"{value.name}_float32", ir.DataType.FLOAT, value.shape)
            if is_input:
                graph.insert_before(graph[0], ir.node("Cast", [wide], {"to": value.dtype}, outputs=[value]))
            else:
                graph.append(ir.node("Cast", [value], {"to": wide.dtype}, outputs=[wide]))


def feed(case: Case) -> dict[str, np.ndarray]:
    """The inputs of `single_node_model` after `widen_edges`."""
    arrays = {}
    for name, array in case.arrays().items():
        if array is not None and array.dtype == DTYPES["bfloat16"]:
            arrays[f"{name}_float32"] = array.astype(np.float32)
        elif array is not None:
            arrays[name] = array
    return arrays
