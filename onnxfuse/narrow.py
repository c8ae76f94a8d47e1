"""Weights of projections in fewer bits (`weights="bf16"` or `"int8"`).

After the fusions are proven equal, every constant matrix that activations are multiplied by is rounded. Linear and
GatedMLP read it so; MatMul by a constant becomes Linear. All that is computed keeps its dtype, and so do embedding
tables, norms and biases; the function bodies widen the weights. Like packed weights these are computed when the model
is written, a slab of rows at a time.

bf16   the nearest bfloat16, a change of at most 2^-8 of a weight; half the bytes. In panels of 32 columns where their
       number is a multiple of that. For models that compute in float32.
int8   integers with a scale for 32 rows of a column (see `onnxfuse.custom_ops.int8`), a change of at most 1/254 of the
       largest weight of those 32; 8.5 bits a weight. Matrices whose rows or columns are no multiple of 32 become
       bfloat16, or stay what they are where the model computes in 16 bits.

Where the processor multiplies bfloat16 but has no AMX, the kernels take activations of eight rows and more in bfloat16
beside such weights, too: one more error of that size.

What else reads a matrix still finds it as it was. A matrix with values that bfloat16 does not have, infinite ones or
some beyond 3.39e38, stays as it is, and so do products by Gemm and by constants of another rank.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import ml_dtypes
import numpy as np
import onnx_ir as ir

from onnxfuse.custom_ops import int8
from onnxfuse.custom_ops.functions import attach
from onnxfuse.custom_ops.packing import PANEL, is_packable, pack, packed_shape, unpack
from onnxfuse.derived import SLAB, ComputedTensor, unmap
from onnxfuse.errors import UsageError
from onnxfuse.facts import Facts
from onnxfuse.kernel_layout import WEIGHTS
from onnxfuse.operators import OWN, dtype_name
from onnxfuse.order import Order
from onnxfuse.report import in_words
from onnxfuse.soundness import bodies
from onnxfuse.splice import Names, record_origin

# Where an operator has the scale of a weight, by the input that the weight is.
SCALES = {"GatedMLP": {1: 9, 2: 10, 3: 11}, "Linear": {3: 9, 5: 10, 7: 11}}
_LARGEST = float(ml_dtypes.finfo(ml_dtypes.bfloat16).max)
_ACTIVATIONS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


@dataclass(frozen=True)
class Form:
    """A form of fewer bits.

    Attributes
    ----------
    dtype
        Of the numbers.
    bits
        Of a number.
    error
        Root mean square of what a weight changes by, relative to that of the weights beside it.
    takes
        Whether a matrix [K, N] has this form.
    parts
        The tensors it consists of, see `_Matrix.computed`.
    """

    dtype: str
    bits: int
    error: float
    takes: Callable[[tuple[int, int]], bool]
    parts: Callable[[_Matrix, str], tuple[ComputedTensor, ...]]


@dataclass(frozen=True)
class Narrowed:
    """What `narrow` did: matrices that are narrow now, by dtype, and the names of those that cannot be."""

    matrices: dict[str, int]
    kept: tuple[str, ...]

    @property
    def error(self) -> float:
        """Root mean square of the relative error of products by all these matrices behind each other."""
        return math.sqrt(sum(_BY_DTYPE[dtype].error ** 2 * count for dtype, count in self.matrices.items()))

    @property
    def tolerance(self) -> float:
        """What the error of an output may be in the root mean square, relative to that of the output.

        The errors of the terms of a sum are independent, so that a product is off by as much of its own root mean
        square as a weight. So are those of P products: a half of a layer adds to what the others made, off by an error
        of its own, and together they are off by sqrt(P) of one, which is `error`; models of 2 to 24 layers were, by 0.3
        to 1.2 of it. Activations that are rounded, too, make sqrt(2) times that, norms and softmaxes up to 3 times. An
        output off by half its size is none, whatever explains that.
        """
        return min(3 * self.error, 0.5)

    @property
    def largest(self) -> float:
        """The largest relative error of a value (see `verify.compare.difference`) that narrow weights explain.

        6 standard deviations cover the largest of some 10^8 values; 1 is the error of a model that returns zeros.
        """
        return min(6 * 3 * self.error, 0.9)

    def note(self) -> str:
        """In words."""
        text = f"rounded: {in_words(self.matrices) or 'nothing'}"
        if self.kept:
            text += f"; as they were stay, for values that bfloat16 does not have: {', '.join(map(repr, self.kept))}"
        return text


def narrow(model: ir.Model, facts: Facts, weights: str) -> Narrowed:
    """Round the matrices of all projections of the fused `model`, in place; those that are narrow stay as they are.

    Parameters
    ----------
    weights
        One of `FORMS`.

    Raises
    ------
    UsageError
        The model is to get weights of 16 bits and computes in 16 bits, or it has no projection by a constant matrix.
    """
    found = _Projections(model, facts, weights)
    projections = [node for node in ir.traversal.RecursiveGraphIterator(model.graph) if found.is_projection(node)]
    if not projections:
        raise UsageError(f"weights is {weights!r}, but the model multiplies by no constant matrix of floats")
    for node in projections:
        found.round(node)
    found.drop_unused()
    return Narrowed(found.counts(), tuple(found.kept))


def held(model: ir.Model, beside: ir.Model) -> Narrowed:
    """The narrow matrices of `model`, of dtypes in which the model that it was made of has none."""

    def counted(model: ir.Model) -> Counter:
        tensors = [value.const_value for value in model.graph.initializers.values() if value.const_value is not None]
        found = Counter(dtype_name(tensor.dtype) for tensor in tensors if len(tensor.shape) > 1)
        found["bfloat16"] -= found["int8"]  # each has a matrix of scales
        return found

    found, before = counted(model), counted(beside)
    return Narrowed({dtype: found[dtype] for dtype in _BY_DTYPE if found[dtype] > 0 and not before[dtype]}, ())


@dataclass(frozen=True)
class _Matrix:
    """A constant matrix [K, N], or panels of one: the transpose of `weight` where that is what is multiplied by."""

    weight: ir.Value
    tensor: ir.TensorProtocol = field(compare=False)  # what `weight` holds
    transposed: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """K, N"""
        shape = tuple(int(size) for size in self.tensor.shape)
        if len(shape) == 3:
            return shape[1], shape[0] * PANEL
        return shape[::-1] if self.transposed else shape

    def computed(
        self, name: str, dtype: ir.DataType, shape: tuple[int, ...], rows: Callable[[np.ndarray, int, int], np.ndarray]
    ) -> ComputedTensor:
        """A tensor whose rows are made of what `weight` holds."""
        return ComputedTensor(lambda: self.tensor, rows, dtype, shape, name)

    def of_panels(
        self, name: str, dtype: ir.DataType, shape: tuple[int, ...], made: Callable[[np.ndarray], np.ndarray]
    ) -> ComputedTensor:
        """A tensor whose rows are panels: `made` of these columns of the matrix."""

        def rows(stored: np.ndarray, start: int, stop: int) -> np.ndarray:
            if stored.ndim == 3:
                return made(unpack(stored[start:stop]))
            plain = stored.T if self.transposed else stored
            return made(plain[:, start * PANEL : stop * PANEL])

        return self.computed(name, dtype, shape, rows)


def _as_bfloat16(matrix: _Matrix, name: str) -> tuple[ComputedTensor, ...]:
    dtype = ir.DataType.BFLOAT16
    if is_packable(matrix.shape):
        shape = packed_shape(matrix.shape)
        return (matrix.of_panels(name, dtype, shape, lambda columns: pack(columns.astype(ml_dtypes.bfloat16))),)

    def rows(stored: np.ndarray, start: int, stop: int) -> np.ndarray:
        plain = stored.T if matrix.transposed else stored
        return np.array(plain[start:stop], ml_dtypes.bfloat16, order="C")

    return (matrix.computed(name, dtype, matrix.shape, rows),)


def _as_int8(matrix: _Matrix, name: str) -> tuple[ComputedTensor, ...]:
    def numbers(columns: np.ndarray) -> np.ndarray:
        return int8.numbers_of(columns, int8.scales_of(columns))

    return (
        matrix.of_panels(name, ir.DataType.INT8, int8.numbers_shape(matrix.shape), numbers),
        matrix.of_panels(f"{name}/scale", ir.DataType.BFLOAT16, int8.scales_shape(matrix.shape), int8.scales_of),
    )


# Evenly spread over a range that reaches d to both sides, errors are d / sqrt(3) in the mean square. d is 2^-8 of the
# power of two below a weight, which is sqrt(7/3) times that in the mean square, or 1/254 of the largest of 32, which is
# some 3 times their root mean square.
BFLOAT16 = Form("bfloat16", 16, 2.0**-8 / math.sqrt(7), lambda shape: True, _as_bfloat16)
INT8 = Form("int8", 8, 3 / 254 / math.sqrt(3), int8.has_int8, _as_int8)
FORMS = {"bf16": (BFLOAT16,), "int8": (INT8, BFLOAT16)}  # a matrix gets the first form that takes it
_BY_DTYPE = {form.dtype: form for form in (BFLOAT16, INT8)}


class _Projections:
    def __init__(self, model: ir.Model, facts: Facts, weights: str) -> None:
        self.weights = weights
        self.model = model
        self.facts = facts
        self.names = Names(Order(model))
        self.body = bodies(facts)
        self.rounded: dict[_Matrix, tuple[ir.Value, ...] | None] = {}  # None: it cannot be
        self.kept: dict[str, None] = {}  # an ordered set

    def is_projection(self, node: ir.Node) -> bool:
        """Whether the node multiplies activations by constant matrices. Raises UsageError if no form has fewer bits."""
        if node.domain == OWN and node.op_type in WEIGHTS:
            matrices = [self._matrix(node, index) for group in WEIGHTS[node.op_type] for index in group]
        elif (node.domain, node.op_type) == ("", "MatMul"):
            matrices = [self._matrix(node, 1)]
        else:
            return False
        if self.facts.dtype(node.inputs[0]) not in _ACTIVATIONS or not any(matrices):
            return False
        if not self._forms(node):
            raise UsageError(
                f"weights is {self.weights!r}, expected a model that computes in float32; {node.name!r} computes in "
                f"{dtype_name(self.facts.dtype(node.inputs[0]))}, whose weights have 16 bits already"
            )
        return True

    def round(self, node: ir.Node) -> None:
        """Give a projection its rounded weights."""
        if node.domain != OWN:
            parts = self._rounded(node, 1)
            if parts is not None:
                self._replace(node, parts)
            return
        before = list(node.inputs)
        for group in WEIGHTS[node.op_type]:
            rounded = [self._rounded(node, index) for index in group]
            if None not in rounded:
                for index, parts in zip(group, rounded, strict=True):
                    _give(node, index, parts)
        if before != list(node.inputs):
            attach(node, self.model, self.body)

    def drop_unused(self) -> None:
        """Remove what was only there to be rounded, and what was rounded in vain."""
        for matrix, rounded in self.rounded.items():
            for user, _ in list(matrix.weight.uses()):
                if matrix.transposed and not _is_read(user.outputs[0]):
                    user.graph.remove(user, safe=True)
            for value in (matrix.weight, *(rounded or ())):
                if not _is_read(value):
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
        if tensor is None or not (tensor.dtype.is_floating_point() or tensor.dtype == ir.DataType.INT8):
            return None
        rank = len(tensor.shape)
        packed = node.domain == OWN and rank in (3, 4) and not transposed
        return _Matrix(value, tensor, transposed) if rank == 2 or packed else None

    def _forms(self, node: ir.Node) -> list[Form]:
        """Those with fewer bits than the activations of `node`."""
        return [form for form in FORMS[self.weights] if form.bits < self.facts.dtype(node.inputs[0]).bitwidth]

    def _rounded(self, node: ir.Node, index: int) -> tuple[ir.Value, ...] | None:
        """The parts that take the place of input `index`; None if it has no such form, or one of them already."""
        matrix = self._matrix(node, index)
        if matrix is None or matrix.tensor.dtype.bitwidth < self.facts.dtype(node.inputs[0]).bitwidth:
            return None
        form = next((form for form in self._forms(node) if form.takes(matrix.shape)), None)
        if form is None:
            return None
        if matrix not in self.rounded:
            fits = _fits(matrix.tensor)
            if not fits:
                self.kept[matrix.weight.name] = None
            self.rounded[matrix] = self._computed(matrix, form) if fits else None
        return self.rounded[matrix]

    def counts(self) -> dict[str, int]:
        """How many matrices have which dtype now."""
        used = (parts[0] for parts in self.rounded.values() if parts is not None and parts[0].uses())
        found = Counter(dtype_name(numbers.dtype) for numbers in used)
        return {form.dtype: found[form.dtype] for form in FORMS[self.weights] if found[form.dtype]}

    def _computed(self, matrix: _Matrix, form: Form) -> tuple[ir.Value, ...]:
        parts = []
        for tensor in form.parts(matrix, self.names.unique(f"{matrix.weight.name}/{form.dtype}")):
            value = ir.Value(name=tensor.name, const_value=tensor, shape=tensor.shape, type=ir.TensorType(tensor.dtype))
            self.model.graph.initializers.add(value)
            parts.append(value)
        return tuple(parts)

    def _replace(self, matmul: ir.Node, parts: Sequence[ir.Value]) -> None:
        """Linear in place of MatMul."""
        node = ir.Node(OWN, "Linear", [matmul.inputs[0], None, None, None], name=matmul.name)
        _give(node, 3, parts)
        record_origin(node, self.weights, [matmul])
        old, new = matmul.outputs[0], node.outputs[0]
        new.name, new.type, new.shape, old.name = old.name, old.type, old.shape, None
        self.facts.assign(new, like=old)
        matmul.graph.insert_before(matmul, node)
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        matmul.graph.remove(matmul, safe=True)
        attach(node, self.model, self.body)


def _give(node: ir.Node, index: int, parts: Sequence[ir.Value]) -> None:
    """Make the parts of a matrix inputs of a node: the numbers input `index`, their scale the one for it."""
    node.replace_input_with(index, parts[0])
    for scale in parts[1:]:
        where = SCALES[node.op_type][index]
        node.resize_inputs(max(where + 1, len(node.inputs)))
        node.replace_input_with(where, scale)


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
        fits = part.size == 0 or (float(part.min()) >= -_LARGEST and float(part.max()) <= _LARGEST)
        del part
        unmap(tensor)
        if not fits:
            return False
    return True
