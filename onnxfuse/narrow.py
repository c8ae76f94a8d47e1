"""Weights of projections as bfloat16 (`weights="bf16"`), for models that compute in float32: half the bytes to read.

After the fusions are proven equal, every constant matrix that activations are multiplied by is rounded to the nearest
bfloat16, which changes a weight by at most 2^-9 of itself. Linear and GatedMLP read it so, in panels where its columns
are a multiple of 32; MatMul by a constant becomes Linear. All that is computed stays float32, and so do embedding
tables, norms and biases; the function bodies widen the weights. Like packed weights these are computed when the model
is written, a slab of rows at a time.

What else reads a matrix still finds it in float32. A matrix with values that bfloat16 does not have, infinite ones or
some beyond 3.39e38, stays as it is, and so do products by Gemm and by constants of another rank.
"""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx_ir as ir

from onnxfuse.custom_ops.functions import attach
from onnxfuse.custom_ops.packing import PANEL, is_packable, pack, packed_shape
from onnxfuse.derived import SLAB, ComputedTensor, unmap
from onnxfuse.errors import UsageError
from onnxfuse.facts import Facts
from onnxfuse.kernel_layout import WEIGHTS
from onnxfuse.operators import OWN, dtype_name
from onnxfuse.order import Order
from onnxfuse.soundness import bodies
from onnxfuse.splice import Names, record_origin

UNIT = 2.0**-9  # the largest relative change of a weight
_LARGEST = float(ml_dtypes.finfo(ml_dtypes.bfloat16).max)
_16_BITS = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


@dataclass(frozen=True)
class Rounded:
    """What `to_bfloat16` did: matrices that are bfloat16 now, and the names of those that cannot be."""

    matrices: int
    kept: tuple[str, ...]

    def note(self) -> str:
        """In words."""
        text = f"{self.matrices} matrices were rounded to bfloat16"
        if self.kept:
            text += f"; float32 stay, for values that bfloat16 does not have: {', '.join(map(repr, self.kept))}"
        return text


def to_bfloat16(model: ir.Model, facts: Facts) -> Rounded:
    """Round the matrices of all projections of the fused `model`, in place; those that are bfloat16 stay as they are.

    Raises
    ------
    UsageError
        The model computes in 16 bits, or has no projection by a constant matrix.
    """
    found = _Projections(model, facts)
    projections = [node for node in ir.traversal.RecursiveGraphIterator(model.graph) if found.is_projection(node)]
    if not projections:
        raise UsageError("weights is 'bf16', but the model multiplies by no constant matrix of float32")
    for node in projections:
        found.round(node)
    found.drop_unused()
    return Rounded(sum(value is not None and bool(value.uses()) for value in found.rounded.values()), tuple(found.kept))


@dataclass(frozen=True)
class _Matrix:
    """A constant matrix [K, N], or panels of one: the transpose of `weight` where that is what is multiplied by."""

    weight: ir.Value
    transposed: bool = False


class _Projections:
    def __init__(self, model: ir.Model, facts: Facts) -> None:
        self.model = model
        self.facts = facts
        self.names = Names(Order(model))
        self.body = bodies(facts)
        self.rounded: dict[_Matrix, ir.Value | None] = {}  # None: it cannot be
        self.kept: dict[str, None] = {}  # an ordered set

    def is_projection(self, node: ir.Node) -> bool:
        """Whether the node multiplies activations by constant matrices. Raises UsageError if it does so in 16 bits."""
        if node.domain == OWN and node.op_type in WEIGHTS:
            matrices = [self._matrix(node, index) for group in WEIGHTS[node.op_type] for index in group]
        elif (node.domain, node.op_type) == ("", "MatMul"):
            matrices = [self._matrix(node, 1)]
        else:
            return False
        dtype = self.facts.dtype(node.inputs[0])
        if dtype in _16_BITS and any(matrices):
            name = dtype_name(dtype)
            raise UsageError(
                f"weights is 'bf16', but {node.name!r} computes in {name}: expected a model that computes in float32; "
                f"the weights of a {name} model have 16 bits already"
            )
        return dtype == ir.DataType.FLOAT and any(matrices)

    def round(self, node: ir.Node) -> None:
        """Give a projection its rounded weights."""
        if node.domain != OWN:
            weight = self._rounded(self._matrix(node, 1))
            if weight is not None:
                self._replace(node, weight)
            return
        before = list(node.inputs)
        for group in WEIGHTS[node.op_type]:
            matrices = [self._matrix(node, index) for index in group]
            weights = [None if matrix is None else self._rounded(matrix) for matrix in matrices]
            if None not in weights:
                for index, weight in zip(group, weights, strict=True):
                    node.replace_input_with(index, weight)
        if before != list(node.inputs):
            attach(node, self.model, self.body)

    def drop_unused(self) -> None:
        """Remove what was only there to be rounded, and what was rounded in vain."""
        for matrix, rounded in self.rounded.items():
            for user, _ in list(matrix.weight.uses()):
                if matrix.transposed and not _is_read(user.outputs[0]):
                    user.graph.remove(user, safe=True)
            for value in (matrix.weight, rounded):
                if value is not None and not _is_read(value):
                    _remove(value)

    def _matrix(self, node: ir.Node, index: int) -> _Matrix | None:
        """The constant matrix of floats that input `index` is."""
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is None:
            return None
        producer = value.producer()
        transposed = producer is not None and (producer.domain, producer.op_type) == ("", "Transpose")
        if transposed:
            value = producer.inputs[0]
        tensor = self.facts.tensor(value)
        if tensor is None or not tensor.dtype.is_floating_point():
            return None
        rank = len(tensor.shape)
        panels = node.domain == OWN and rank == 3 and not transposed
        return _Matrix(value, transposed) if rank == 2 or panels else None

    def _rounded(self, matrix: _Matrix) -> ir.Value | None:
        if matrix not in self.rounded:
            tensor = self.facts.tensor(matrix.weight)
            if tensor.dtype == ir.DataType.BFLOAT16:
                return None  # as it was when it was rounded before
            fits = _fits(tensor)
            if not fits:
                self.kept[matrix.weight.name] = None
            self.rounded[matrix] = self._computed(matrix, tensor) if fits else None
        return self.rounded[matrix]

    def _computed(self, matrix: _Matrix, tensor: ir.TensorProtocol) -> ir.Value:
        name = self.names.unique(f"{matrix.weight.name}/bfloat16")
        shape = tuple(int(size) for size in tensor.shape)
        shape = shape[::-1] if matrix.transposed else shape
        packs = is_packable(shape)

        def rows(stored: np.ndarray, start: int, stop: int) -> np.ndarray:
            plain = stored.T if matrix.transposed else stored
            if not packs:
                return np.array(plain[start:stop], ml_dtypes.bfloat16, order="C")
            return pack(plain[:, start * PANEL : stop * PANEL].astype(ml_dtypes.bfloat16))

        result = packed_shape(shape) if packs else shape
        computed = ComputedTensor(lambda: tensor, rows, ir.DataType.BFLOAT16, result, name)
        value = ir.Value(
            name=name, const_value=computed, shape=ir.Shape(result), type=ir.TensorType(ir.DataType.BFLOAT16)
        )
        self.model.graph.initializers.add(value)
        return value

    def _replace(self, matmul: ir.Node, weight: ir.Value) -> None:
        """Linear in place of MatMul."""
        node = ir.Node(OWN, "Linear", [matmul.inputs[0], None, None, weight], name=matmul.name)
        record_origin(node, "bf16", [matmul])
        old, new = matmul.outputs[0], node.outputs[0]
        new.name, new.type, new.shape, old.name = old.name, old.type, old.shape, None
        self.facts.assign(new, like=old)
        matmul.graph.insert_before(matmul, node)
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        matmul.graph.remove(matmul, safe=True)
        attach(node, self.model, self.body)


def _is_read(value: ir.Value) -> bool:
    return bool(value.uses()) or value.is_graph_output()


def _remove(constant: ir.Value) -> None:
    """Remove a constant that nobody reads from its graph."""
    if constant.producer() is not None:
        constant.producer().graph.remove(constant.producer(), safe=True)
    elif constant.graph is not None and constant.graph.initializers.get(constant.name) is constant:
        del constant.graph.initializers[constant.name]


def _fits(tensor: ir.TensorProtocol) -> bool:
    """Whether all values are numbers within the range of bfloat16; one that lies in a file is read slab by slab."""
    rows = int(tensor.shape[0])
    in_file = isinstance(tensor, ir.ExternalTensor)
    step = max(1, SLAB * rows // max(1, tensor.nbytes)) if in_file else max(1, rows)
    for start in range(0, rows, step):
        part = tensor.numpy()[start : start + step]
        fits = part.size == 0 or bool(part.min() >= -_LARGEST and part.max() <= _LARGEST)
        del part
        unmap(tensor)
        if not fits:
            return False
    return True
