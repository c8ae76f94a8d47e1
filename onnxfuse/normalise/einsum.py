"""Einsum of two tensors as the product of matrices that it is.

    "bqhd,bkhd->bhqk"     Transpose(q) @ Transpose(k)                          b, h: batch; q: rows; k: columns; d: sum
    "bsh,hnd->bsnd"       Reshape(x @ Reshape(w))                              several columns are one for a while
    "bskgd,btkd->bkgst"   Transpose(q) @ Unsqueeze(Transpose(k))               g: rows that share the other's matrix

Source: the ONNX operator specification, Einsum-12.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxfuse.dims import Size
from onnxfuse.normalise.axes import with_axes
from onnxfuse.normalise.simplify import attr
from onnxfuse.normalise.sweep import Site, simplifies
from onnxfuse.shapes import Shape, product


@dataclass(frozen=True)
class Equation:
    """The labels of both operands and of the result."""

    left: str
    right: str
    result: str

    @classmethod
    def of(cls, text: str) -> Equation | None:
        """None where `text` is not a product of two matrices or batches of them, or repeats a label."""
        operands, arrow, result = text.replace(" ", "").partition("->")
        sides = operands.split(",")
        terms = (*sides, result)
        if not arrow or len(sides) != 2 or not all(t.isalpha() and len(set(t)) == len(t) for t in terms):
            return None
        found = cls(*terms)
        alone = (set(found.left) ^ set(found.right)) - set(result)  # summed over one operand only
        return found if found.summed and found.rows and found.columns and not alone else None

    @property
    def batch(self) -> str:
        return "".join(c for c in self.result if c in self.left and c in self.right)

    @property
    def rows(self) -> str:
        """In the left operand's order if that needs no Transpose, else in the result's."""
        as_given = "".join(c for c in self.left if c not in self.right)
        if self.left == self.batch + as_given + self.summed:
            return as_given
        return "".join(c for c in self.result if c not in self.right)

    @property
    def columns(self) -> str:
        return "".join(c for c in self.result if c not in self.left)

    @property
    def summed(self) -> str:
        return "".join(c for c in self.left if c in self.right and c not in self.result)


@simplifies("Einsum")
def product_of_matrices(node: ir.Node, site: Site) -> ir.Value | None:
    """The batch first, then rows and columns; several labels of one kind are one axis, or rows more of the batch."""
    equation = Equation.of(attr(node, "equation", "")) if site.canonical and len(node.inputs) == 2 else None
    if equation is None:
        return None
    sides = [(*node.inputs, equation), (*node.inputs[::-1], Equation(equation.right, equation.left, equation.result))]
    left, right, equation = min(sides, key=lambda side: (len(side[2].columns), site.facts.is_constant(side[0])))
    batch, rows, columns, summed = equation.batch, equation.rows, equation.columns, equation.summed
    size = _sizes(equation, site.facts.shape(left), site.facts.shape(right))
    several = [c for labels in (columns, summed) if len(labels) > 1 for c in labels]
    if size is None or not all(isinstance(size[c], int) for c in several):
        return None
    a = _with_axes(left, equation.left, [*batch, *rows, summed], size, site)
    b = _with_axes(right, equation.right, [*batch, summed, columns], size, site)
    if batch and len(rows) > 1:
        b = with_axes("Unsqueeze", b, list(range(len(batch), len(batch + rows) - 1)), site)
    made = site.op("MatMul", a, b)
    if len(columns) > 1:
        made = site.op("Reshape", made, site.constant([0] * len(batch + rows) + [size[c] for c in columns], "shape"))
    return _transposed(made, batch + rows + columns, equation.result, site)


def _sizes(equation: Equation, left: Shape | None, right: Shape | None) -> dict[str, Size] | None:
    """The size of each label; None where one is not known, or of size one on one side alone and broadcasts."""
    if left is None or right is None or (len(left), len(right)) != (len(equation.left), len(equation.right)):
        return None
    sizes = dict(zip(equation.left, left, strict=True))
    for label, size in zip(equation.right, right, strict=True):
        if 1 in (size, sizes.setdefault(label, size)) and size != sizes[label]:
            return None
    return sizes


def _with_axes(x: ir.Value, labels: str, wanted: Sequence[str], sizes: Mapping[str, Size], site: Site) -> ir.Value:
    """x with one axis for each of `wanted`, the product of all that it names."""
    x = _transposed(x, labels, "".join(wanted), site)
    if all(len(axis) == 1 for axis in wanted):
        return x
    joined = [product([sizes[c] for c in axis]) for axis in wanted]
    kept = next(i for i, axis in enumerate(wanted) if len(axis) > 1)  # axes in front of the first that joins several
    target = [0] * kept + [s if isinstance(s, int) else -1 for s in joined[kept:]]
    return site.op("Reshape", x, site.constant(target, "shape"))


def _transposed(x: ir.Value, labels: str, wanted: str, site: Site) -> ir.Value:
    """x with the axes of `labels` in the order of `wanted`."""
    return x if labels == wanted else site.op("Transpose", x, perm=[labels.index(c) for c in wanted])
