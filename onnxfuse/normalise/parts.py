"""One form for a part of a tensor: a Slice with plain bounds; an element of an axis: Gather with a scalar index."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxfuse.normalise.simplify import attr, producer, reshaped
from onnxfuse.normalise.sweep import Site, simplifies
from onnxfuse.shapes.fact import SENTINEL, product


@simplifies("Slice")
def plain_bounds(node: ir.Node, site: Site) -> ir.Value | None:
    """Constant bounds are counted from the front, and what reaches beyond the end stops at it."""
    if not site.canonical or len(node.inputs) < 3:
        return None
    arrays = [None if v is None else site.facts.constant(v) for v in node.inputs[1:]]
    shape = site.facts.shape(node.inputs[0])
    if shape is None or any(array is None for array in arrays):
        return None
    found = [array.reshape(-1).tolist() for array in arrays]
    starts, ends, axes, steps = found + [list(range(len(found[0]))), [1] * len(found[0])][len(found) - 2 :]
    axes = [a % len(shape) for a in axes]
    if any(step < 1 for step in steps):
        return None
    bounds = zip(starts, ends, steps, axes, strict=True)
    plain = [_plain(start, end, step, shape[axis]) for start, end, step, axis in bounds]
    wanted = [[p[0] for p in plain], [p[1] for p in plain], axes, steps]
    if found == wanted:
        return None
    node.resize_inputs(5)
    for position, bound in enumerate(wanted):
        if position >= len(found) or found[position] != bound:
            node.replace_input_with(1 + position, site.constant(bound, "bounds"))
    return node.outputs[0]


def _plain(start: int, end: int, step: int, size: object) -> tuple[int, int]:
    if not isinstance(size, int):
        return start, SENTINEL if end >= SENTINEL else end
    start, end = (min(max(v + size, 0) if v < 0 else v, size) for v in (start, end))
    return start, size if len(range(start, end, step)) == len(range(start, size, step)) else end


@simplifies("Gather")
def gathered_range(node: ir.Node, site: Site) -> ir.Value | None:
    """Gather of evenly spaced entries is a Slice."""
    data, indices = node.inputs[0], site.facts.constant(node.inputs[1])
    shape = site.facts.shape(data)
    if not site.canonical or indices is None or shape is None or indices.ndim != 1 or indices.size < 2:
        return None
    axis = attr(node, "axis", 0) % len(shape)
    step = int(indices[1] - indices[0])
    if step < 1 or indices[0] < 0 or (np.diff(indices) != step).any() or not isinstance(shape[axis], int):
        return None
    if indices[-1] >= shape[axis]:
        return None
    bounds = (int(indices[0]), int(indices[-1]) + 1, axis, step)
    return site.op("Slice", data, *(site.constant([b], "bounds") for b in bounds))


@simplifies("Squeeze")
def squeezed_part(node: ir.Node, site: Site) -> ir.Value | None:
    """A part of size one that is squeezed, of a Split or a Slice, is an element: Gather with a scalar index."""
    part = node.inputs[0]
    whole = part.producer()
    if not site.canonical or whole is None or whole.domain or whole.op_type not in ("Split", "Slice"):
        return None
    shape, out = site.facts.shape(part), site.facts.shape(node.outputs[0])
    axes = attr(node, "axes") or (site.facts.content(node.inputs[1]) if len(node.inputs) > 1 else None)
    if shape is None or out is None or axes is None or len(axes) != 1 or not isinstance(axes[0], int):
        return None
    axis = axes[0] % len(shape)
    index = _index_in_split(part, axis, site) if whole.op_type == "Split" else _index_in_slice(whole, axis, site)
    if index is None:
        return None
    return site.op("Gather", whole.inputs[0], site.constant(np.array(index), "index"), axis=axis)


def _index_in_split(part: ir.Value, axis: int, site: Site) -> int | None:
    split = part.producer()
    if attr(split, "axis", 0) % site.facts.rank(part) != axis:
        return None
    sizes = [site.facts.shape(output)[axis] for output in split.outputs[: part.index() + 1]]
    return sum(sizes[:-1]) if sizes[-1] == 1 and all(isinstance(s, int) for s in sizes) else None


def _index_in_slice(cut: ir.Node, axis: int, site: Site) -> int | None:
    bounds = [None if v is None else site.facts.constant(v) for v in cut.inputs[1:]]
    if len(bounds) < 3 or any(b is None or b.size != 1 for b in bounds):
        return None
    start, end, cut_axis = (int(b.reshape(-1)[0]) for b in bounds[:3])
    rank = site.facts.rank(cut.inputs[0])
    return start if cut_axis % rank == axis and start >= 0 and end == start + 1 else None


@simplifies("Gather")
def element_of_a_cut_axis(node: ir.Node, site: Site) -> ir.Value | None:
    """An element of an axis that Reshape has cut in two is a strided or a whole part of the axis before."""
    cut = producer(node.inputs[0], "Reshape")
    index = site.facts.constant(node.inputs[1])
    if not site.canonical or cut is None or index is None or index.ndim != 0:
        return None
    x, parts = cut.inputs[0], site.facts.shape(node.inputs[0])
    if parts is None or len(parts) < 2 or not all(isinstance(s, int) for s in parts[-2:]):
        return None
    axis, index = attr(node, "axis", 0) % len(parts), int(index)
    whole = (*parts[:-2], product(parts[-2:]))
    if index < 0 or axis < len(parts) - 2:
        return None
    x = reshaped(x, whole, site)
    if x is None:
        return None
    inner = parts[-1]
    start, end, step = (index, whole[-1], inner) if axis == len(parts) - 1 else (index * inner, (index + 1) * inner, 1)
    return site.op("Slice", x, *(site.constant([v], "bounds") for v in (start, end, len(whole) - 1, step)))
