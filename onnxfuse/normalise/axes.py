"""One form for axes of size one: kept by a reduction, inserted by Unsqueeze, left out in front of a constant."""

from __future__ import annotations

import onnx_ir as ir

from onnxfuse.normalise.simplify import attr, producer, written
from onnxfuse.normalise.sweep import Site, simplifies
from onnxfuse.shapes.fact import Shape

MOVES = ("Reshape", "Unsqueeze", "Squeeze", "Flatten")


@simplifies("Unsqueeze", "Squeeze")
def back_again(node: ir.Node, site: Site) -> ir.Value | None:
    """Axes of size one that come and go: the first value of that shape."""
    shape, value, found = site.facts.shape(node.outputs[0]), node.inputs[0], None
    while shape is not None and value is not None:
        if site.facts.shape(value) == shape:
            found = value
        inner = value.producer()
        value = inner.inputs[0] if inner is not None and inner.op_type in MOVES and not inner.domain else None
    return found


@simplifies("Unsqueeze", "Squeeze")
def counted_from_the_front(node: ir.Node, site: Site) -> ir.Value | None:
    """Axes counted from the end are counted from the front, so that equal nodes look equal."""
    rank = site.facts.rank(node.outputs[0] if node.op_type == "Unsqueeze" else node.inputs[0])
    axes = site.facts.constant(node.inputs[1]) if len(node.inputs) > 1 and node.inputs[1] is not None else None
    if not site.canonical or rank is None or axes is None or (axes >= 0).all():
        return None
    node.replace_input_with(1, site.constant(sorted(a % rank for a in axes.reshape(-1).tolist()), "axes"))
    return node.outputs[0]


@simplifies("Unsqueeze")
def kept_by_the_reduction(node: ir.Node, site: Site) -> ir.Value | None:
    """A reduction that drops an axis, put back by Unsqueeze, keeps it."""
    reduction = node.inputs[0].producer()
    if not site.canonical or reduction is None or reduction.domain or not reduction.op_type.startswith("Reduce"):
        return None
    x = reduction.inputs[0]
    rank = site.facts.rank(x)
    if attr(reduction, "keepdims", 1) or rank is None:
        return None
    dropped, added = listed_axes(reduction, site), listed_axes(node, site)
    if not dropped or not added or sorted(a % rank for a in dropped) != sorted(a % rank for a in added):
        return None
    attributes = written(reduction) | {"keepdims": 1}
    return site.op(reduction.op_type, *reduction.inputs, **attributes)


def listed_axes(node: ir.Node, site: Site) -> list[int] | None:
    """The axes of a node, attribute or input."""
    if "axes" in node.attributes:
        return list(node.attributes["axes"].value)
    return site.facts.content(node.inputs[1]) if len(node.inputs) > 1 and node.inputs[1] is not None else None


@simplifies("Transpose")
def inserted_elsewhere(node: ir.Node, site: Site) -> ir.Value | None:
    """An axis of size one that is inserted and then moved is inserted where it goes."""
    insertion, perm = node.inputs[0].producer(), attr(node, "perm")
    if insertion is None or insertion.domain or insertion.op_type != "Unsqueeze" or perm is None:
        return None
    axes = listed_axes(insertion, site)
    if axes is None:
        return None
    added = {axis % len(perm) for axis in axes}
    kept = [axis for axis in perm if axis not in added]
    places = [place for place, axis in enumerate(perm) if axis in added]
    return with_axes("Unsqueeze", insertion.inputs[0], places, site) if kept == sorted(kept) else None


@simplifies("Squeeze")
def dropped_again(node: ir.Node, site: Site) -> ir.Value | None:
    """Axes of size one that are inserted, moved and dropped again: the others are transposed."""
    transpose = producer(node.inputs[0], "Transpose")
    insertion = None if transpose is None else producer(transpose.inputs[0], "Unsqueeze")
    perm = None if transpose is None else attr(transpose, "perm")
    if insertion is None or perm is None:
        return None
    added, dropped = listed_axes(insertion, site), listed_axes(node, site)
    if added is None or dropped is None:
        return None
    gone = {axis % len(perm) for axis in added}
    if {perm[axis] for axis in dropped} != gone:
        return None
    kept = [axis for axis in range(len(perm)) if axis not in gone]
    return site.op("Transpose", insertion.inputs[0], perm=[kept.index(axis) for axis in perm if axis not in gone])


def with_axes(op_type: str, x: ir.Value, axes: list[int], site: Site) -> ir.Value:
    """Unsqueeze or Squeeze of x."""
    return site.op(op_type, x, site.constant(axes, "axes"))


@simplifies("Reshape", "Unsqueeze", "Squeeze")
def only_axes_of_one(node: ir.Node, site: Site) -> ir.Value | None:
    """Steps that only insert, or only drop, axes of size one are one Unsqueeze, or one Squeeze."""
    shape, found = site.facts.shape(node.outputs[0]), None
    if not site.canonical or shape is None:
        return None
    x, steps = node.inputs[0], 1 if node.op_type == "Reshape" else 0  # one Unsqueeze alone is as it should be
    while x is not None:
        source = site.facts.shape(x)
        if source is not None and steps > 0 and len(source) != len(shape):
            longer, shorter = (shape, source) if len(shape) > len(source) else (source, shape)
            axes = inserted(longer, shorter)
            if axes is not None:
                found = ("Unsqueeze" if longer is shape else "Squeeze"), x, axes
        inner = x.producer()
        x = inner.inputs[0] if inner is not None and inner.op_type in MOVES and not inner.domain else None
        steps += 1
    if found is None:
        return None
    op_type, x, axes = found
    return with_axes(op_type, x, axes, site)


def inserted(longer: Shape, shorter: Shape) -> list[int] | None:
    """Where sizes of one were put into `shorter` to make `longer`."""
    axes, position = [], 0
    for axis, size in enumerate(longer):
        if position < len(shorter) and size == shorter[position]:
            position += 1
        elif size == 1:
            axes.append(axis)
        else:
            return None
    return axes if position == len(shorter) else None


@simplifies("Tile", "Concat", "Gather")
def repeated(node: ir.Node, site: Site) -> ir.Value | None:
    """An axis of size one that Tile, Concat or Gather repeats is expanded."""
    source, shape = site.facts.shape(node.inputs[0]), site.facts.shape(node.outputs[0])
    if not site.canonical or source is None or shape is None or len(source) != len(shape):
        return None
    if node.op_type == "Concat" and any(value is not node.inputs[0] for value in node.inputs):
        return None
    if node.op_type == "Gather" and source[attr(node, "axis", 0)] != 1:
        return None
    target = [1 if size == before else size for size, before in zip(shape, source, strict=True)]
    if not all(a == b or (a == 1 and isinstance(b, int)) for a, b in zip(source, shape, strict=True)):
        return None
    return site.op("Expand", node.inputs[0], site.constant(target, "shape"))


@simplifies("Mul", "Add", "Div", "Sub", "Gemm")
def leading_ones(node: ir.Node, site: Site) -> ir.Value | None:
    """A constant [1, 1, D] that is broadcast against a tensor of that rank is a constant [D]."""
    ranks = [site.facts.rank(v) for v in node.inputs]
    if not site.canonical or None in ranks:
        return None
    for position, value in enumerate(node.inputs):
        if node.op_type == "Gemm" and position < 2:
            continue
        shape, beside = site.facts.shape(value), max(r for i, r in enumerate(ranks) if i != position)
        if not site.facts.is_constant(value) or len(shape) > beside or len(shape) < 2:
            continue
        kept = list(shape)
        while len(kept) > 1 and kept[0] == 1:
            kept.pop(0)
        if len(kept) < len(shape):
            node.replace_input_with(position, _reshaped(value, kept, site))
            return node.outputs[0]
    return None


def _reshaped(value: ir.Value, shape: list[int], site: Site) -> ir.Value:
    """A constant with another shape, computed at once if it is small."""
    content = site.facts.constant(value)
    if content is None:
        return site.op("Reshape", value, site.constant(shape, "shape"))
    return site.constant(content.reshape(shape), value.name)
