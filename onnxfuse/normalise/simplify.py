"""Nodes that do nothing, and data movement written in several steps."""

from __future__ import annotations

import onnx_ir as ir

from onnxfuse.dims import Size, is_nonnegative
from onnxfuse.normalise.sweep import Site, simplifies
from onnxfuse.shapes import SENTINEL, Shape, product
from onnxfuse.verify.interface import LAYOUT_CHANGES

# x as the first type, then as the second, then as the first again, is x
LOSSLESS = {
    ir.DataType.FLOAT16: {ir.DataType.FLOAT, ir.DataType.DOUBLE},
    ir.DataType.BFLOAT16: {ir.DataType.FLOAT, ir.DataType.DOUBLE},
    ir.DataType.FLOAT: {ir.DataType.DOUBLE},
    ir.DataType.INT32: {ir.DataType.INT64, ir.DataType.DOUBLE},
    ir.DataType.BOOL: {ir.DataType.INT32, ir.DataType.INT64, ir.DataType.FLOAT, ir.DataType.FLOAT16},
}

FLOATS = {ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.FLOAT, ir.DataType.DOUBLE}  # Neg takes no others

TURNED_KEYS = [0, 2, 3, 1]
TURNED_KEYS_IN_STEPS = [0, 2, 1, 3], [0, 1, 3, 2]


def same_shape(a: ir.Value, b: ir.Value, site: Site) -> bool:
    """Whether both are known to have one shape; two that are unknown are not."""
    shape = site.facts.shape(a)
    return shape is not None and shape == site.facts.shape(b)


def producer(value: ir.Value | None, op_type: str) -> ir.Node | None:
    """The ai.onnx node of this type that makes `value` as its first output."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == op_type and not node.domain and value.index() == 0 else None


def attr(node: ir.Node, name: str, default=None):
    return node.attributes[name].value if name in node.attributes else default


def written(node: ir.Node, *without: str) -> dict[str, object]:
    """The values of the attributes by name, for a new node that has them too."""
    return {name: attribute.value for name, attribute in node.attributes.items() if name not in without}


# ---- nodes that do nothing -------------------------------------------------------------------------------------------


@simplifies("Identity")
def identity(node: ir.Node, site: Site) -> ir.Value:
    return node.inputs[0]


@simplifies("Dropout")
def dropout(node: ir.Node, site: Site) -> ir.Value | None:
    """Dropout outside training; its mask, where used, keeps it."""
    if len(node.outputs) > 1 and (node.outputs[1].uses() or node.outputs[1].is_graph_output()):
        return None
    training = node.inputs[2] if len(node.inputs) > 2 else None
    if training is not None:
        known = site.facts.constant(training)
        if known is None or known.reshape(-1)[0]:
            return None
    return node.inputs[0]


@simplifies("Cast", "CastLike")
def cast(node: ir.Node, site: Site) -> ir.Value | None:
    x, to = node.inputs[0], site.facts.dtype(node.outputs[0])
    if to is None or site.facts.dtype(x) == to:
        return x if to is not None else None
    if node.op_type == "CastLike":
        return site.op("Cast", x, **{**written(node), "to": int(to)})
    inner = producer(x, "Cast")
    if inner is None:
        return None
    source = site.facts.dtype(inner.inputs[0])
    if site.facts.dtype(x) in LOSSLESS.get(source, ()):
        return inner.inputs[0] if source == to else site.op("Cast", inner.inputs[0], **written(node))
    return None


@simplifies("Reshape", "Expand", "Squeeze", "Unsqueeze", "Slice", "Tile", "Flatten")
def keeps_shape(node: ir.Node, site: Site) -> ir.Value | None:
    """Movement to the same shape moves nothing (a Slice only if its steps are positive)."""
    if not same_shape(node.inputs[0], node.outputs[0], site):
        return None
    if node.op_type == "Slice" and len(node.inputs) > 4 and node.inputs[4] is not None:
        steps = site.facts.constant(node.inputs[4])
        if steps is None or (steps < 1).any():
            return None
    return node.inputs[0]


@simplifies("Concat")
def concat_of_one(node: ir.Node, site: Site) -> ir.Value | None:
    """Empty operands add nothing; one operand alone is the result."""
    shapes = [site.facts.shape(v) for v in node.inputs]
    axis = attr(node, "axis")
    kept = [v for v, s in zip(node.inputs, shapes, strict=True) if s is None or s[axis] != 0] or node.inputs[:1]
    if len(kept) == 1:
        return kept[0]
    return site.op("Concat", *kept, axis=axis) if len(kept) < len(node.inputs) else None


_NEUTRAL = {"Mul": 1, "Div": 1, "Add": 0, "Sub": 0, "And": True, "Or": False, "Pow": 1}


@simplifies(*_NEUTRAL)
def neutral_operand(node: ir.Node, site: Site) -> ir.Value | None:
    """x * 1, x + 0, x and true: one operand is a constant that changes neither value nor shape."""
    commutes = node.op_type in ("Mul", "Add", "And", "Or")
    for x, other in ((0, 1), (1, 0)) if commutes else ((0, 1),):
        constant = site.facts.tensor(node.inputs[other])
        if constant is None or constant.size != 1:
            continue
        neutral = constant.numpy().reshape(-1)[0] == _NEUTRAL[node.op_type]
        if neutral and same_shape(node.inputs[x], node.outputs[0], site) and site.facts.dtype(node.inputs[x]):
            return node.inputs[x]
    return None


@simplifies("Where")
def known_choice(node: ir.Node, site: Site) -> ir.Value | None:
    condition = site.facts.constant(node.inputs[0])
    if condition is None or condition.size == 0 or not (condition.all() or not condition.any()):
        return None
    chosen = node.inputs[1] if condition.all() else node.inputs[2]
    return chosen if same_shape(chosen, node.outputs[0], site) else None


@simplifies("Gather")
def all_rows_in_turn(node: ir.Node, site: Site) -> ir.Value | None:
    """Gather(Reshape(x), Reshape(Range(0, n, 1))) of all n rows is x: a table made for every token, read in order."""
    table, indices = producer(node.inputs[0], "Reshape"), node.inputs[1]
    while (laid_out := producer(indices, "Reshape") or producer(indices, "Unsqueeze")) is not None:
        indices = laid_out.inputs[0]
    counted = producer(indices, "Range")
    if table is None or counted is None or attr(node, "axis", 0) != 0:
        return None
    start, step = (site.facts.constant(counted.inputs[i]) for i in (0, 2))
    rows, count = site.facts.shape(node.inputs[0]), site.facts.shape(indices)
    if start is None or step is None or start != 0 or step != 1 or rows is None or rows[:1] != count:
        return None
    return table.inputs[0] if same_shape(table.inputs[0], node.outputs[0], site) else None


# ---- movement in several steps ---------------------------------------------------------------------------------------


@simplifies("Transpose")
def transpose(node: ir.Node, site: Site) -> ir.Value | None:
    """Transposes in a row are one; those that turn the keys stay two while patterns are matched."""
    rank = site.facts.rank(node.inputs[0])
    perm = attr(node, "perm") or (list(range(rank))[::-1] if rank is not None else None)
    if perm is None:
        return None
    if list(perm) == sorted(perm):
        return node.inputs[0]
    found, nearest = None, producer(node.inputs[0], "Transpose")
    inner = nearest
    while inner is not None:
        first, last = list(attr(inner, "perm") or range(len(perm))[::-1]), list(perm)
        perm = [first[p] for p in perm]
        if not site.canonical or (first, last) != TURNED_KEYS_IN_STEPS:
            found = inner.inputs[0], perm
        inner = producer(inner.inputs[0], "Transpose")
    if found is None:
        return None
    x, perm = found
    node.replace_input_with(0, x)
    node.attributes["perm"] = ir.AttrInt64s("perm", perm)
    site.bury(nearest)
    return node.outputs[0]


def reshape_target(source: Shape, shape: Shape) -> list[int] | None:
    """A constant Reshape operand that gives `shape`: 0 copies a size that stands at the same place, one -1 at most."""
    target = [
        s if isinstance(s, int) and s > 0 else 0 if i < len(source) and source[i] == s else -1
        for i, s in enumerate(shape)
    ]
    return target if target.count(-1) <= 1 else None


def reshaped(x: ir.Value, shape: Shape, site: Site) -> ir.Value | None:
    """x with `shape`: itself if it has that, else a Reshape in front of the current node; None if none can say it."""
    known = site.facts.shape(x)
    if known is None or known == shape:
        return None if known is None else x
    target = reshape_target(known, shape)
    return None if target is None else site.op("Reshape", x, site.constant(target, "shape"))


@simplifies("Reshape", "Flatten")
def reshape(node: ir.Node, site: Site) -> ir.Value | None:
    """One Reshape with a constant operand, from the first tensor of a chain of reshapes."""
    shape = site.facts.shape(node.outputs[0])
    source = node.inputs[0]
    while (inner := source.producer()) is not None and inner.op_type in ("Reshape", "Unsqueeze", "Squeeze", "Flatten"):
        if inner.domain or inner.inputs[0] is None:
            break
        source = inner.inputs[0]
    for x in dict.fromkeys((source, node.inputs[0])):
        known = site.facts.shape(x)
        if shape is None or known is None:
            continue
        if known == shape:
            return x
        target = reshape_target(known, shape)
        if target is None:
            continue
        if node.op_type == "Reshape" and x is node.inputs[0] and not attr(node, "allowzero", 0):
            given = site.facts.tensor(node.inputs[1])
            if given is not None and given.numpy().tolist() == target:
                return None
        operand = site.constant(target, "shape")
        if node.op_type == "Reshape":
            node.replace_input_with(0, x)
            node.replace_input_with(1, operand)
            node.attributes.pop("allowzero", None)
            return node.outputs[0]
        return site.op("Reshape", x, operand)
    return None


@simplifies("Reshape")
def transpose_of_matrices(node: ir.Node, site: Site) -> ir.Value | None:
    """Reshape to 3-D, swap the last two axes, Reshape back: torch's rank-independent transpose of the last two axes."""
    swap = producer(node.inputs[0], "Transpose")
    flat = producer(swap.inputs[0], "Reshape") if swap is not None else None
    if flat is None or list(attr(swap, "perm") or ()) != [0, 2, 1]:
        return None
    x, out = flat.inputs[0], site.facts.shape(node.outputs[0])
    middle = site.facts.shape(flat.outputs[0])
    if out is None or middle is None or len(out) < 3 or tuple(middle[1:]) != (out[-1], out[-2]):
        return None
    shape = (*out[:-2], out[-1], out[-2])
    matrices = reshaped(x, shape, site) if middle[0] == product(shape[:-2]) else None
    if matrices is None:
        return None
    rank = len(shape)
    return site.op("Transpose", matrices, perm=[*range(rank - 2), rank - 1, rank - 2])


@simplifies("Unsqueeze")
def unsqueeze_of_unsqueeze(node: ir.Node, site: Site) -> ir.Value | None:
    """Two Unsqueezes are one."""
    inner = producer(node.inputs[0], "Unsqueeze")
    if inner is None or "axes" in node.attributes or "axes" in inner.attributes:
        return None
    outer_axes, inner_axes = site.facts.content(node.inputs[1]), site.facts.content(inner.inputs[1])
    rank = site.facts.rank(node.outputs[0])
    if outer_axes is None or inner_axes is None or rank is None:
        return None
    outer = sorted(a % rank for a in outer_axes)
    kept = [i for i in range(rank) if i not in outer]
    moved = [kept[a % len(kept)] for a in inner_axes]
    return site.op("Unsqueeze", inner.inputs[0], site.constant(sorted(outer + moved), "axes"))


@simplifies("Expand")
def expand(node: ir.Node, site: Site) -> ir.Value | None:
    """An Expand's operand is constant where all that grows grows to a known size."""
    source, shape = site.facts.shape(node.inputs[0]), site.facts.shape(node.outputs[0])
    if source is None or shape is None or site.facts.tensor(node.inputs[1]) is not None:
        return None
    padded = (1,) * (len(shape) - len(source)) + tuple(source)
    target: list[Size] = [1 if a == b else b for a, b in zip(padded, shape, strict=True)]
    if not all(isinstance(t, int) for t in target):
        return None
    node.replace_input_with(1, site.constant(target, "shape"))
    return node.outputs[0]


# ---- rotary tables that are cut before they are looked up ------------------------------------------------------------


def _from_zero(node: ir.Node, axis: int, site: Site) -> bool:
    """Whether the Slice cuts `axis` alone, from its first entry with step one."""
    if len(node.inputs) < 4 or node.inputs[3] is None:
        return False
    starts, axes = (site.facts.content(node.inputs[i]) for i in (1, 3))
    steps = site.facts.content(node.inputs[4]) if len(node.inputs) > 4 and node.inputs[4] is not None else [1]
    rank = site.facts.rank(node.inputs[0])
    return starts == [0] and steps == [1] and axes is not None and [a % rank for a in axes] == [axis]


@simplifies("Gather")
def gather_of_cut_table(node: ir.Node, site: Site) -> ir.Value | None:
    """table[:n][i] is table[i], unless i may count from the back; both refuse an index beyond their end."""
    cut = producer(node.inputs[0], "Slice")
    if cut is None or not site.facts.is_constant(cut.inputs[0]) or not _counts_from_zero(node.inputs[1], site):
        return None
    axis = attr(node, "axis", 0) % site.facts.rank(cut.inputs[0])
    return site.op("Gather", cut.inputs[0], node.inputs[1], axis=axis) if _from_zero(cut, axis, site) else None


def _counts_from_zero(index: ir.Value, site: Site) -> bool:
    """Whether no entry is below zero: known so, counted by a Range, or positions, whose contract that is."""
    while True:
        known, content = site.facts.constant(index), site.facts.content(index)
        if known is not None:
            return bool((known >= 0).all())
        if content is not None:
            return all(is_nonnegative(entry) for entry in content)
        node = index.producer()
        if node is None:
            return index.name in site.positions
        if node.domain or index is not node.outputs[0]:
            return False
        if node.op_type == "Range":
            start, step = (site.facts.content(node.inputs[i]) for i in (0, 2))
            return bool(start and step) and is_nonnegative(start[0]) and is_nonnegative(step[0])
        if node.op_type not in (*LAYOUT_CHANGES, "Expand", "Slice"):
            return False
        if node.op_type == "Cast" and not _widens(node, site):
            return False
        index = node.inputs[0]


def _widens(cast: ir.Node, site: Site) -> bool:
    source = site.facts.dtype(cast.inputs[0])
    return source is not None and source.is_integer() and site.facts.dtype(cast.outputs[0]) == ir.DataType.INT64


@simplifies("Squeeze")
def squeeze_of_cut_table(node: ir.Node, site: Site) -> ir.Value | None:
    """A constant's axes are squeezed before it is cut: that squeeze is a constant."""
    cut = producer(node.inputs[0], "Slice")
    if cut is None or not site.facts.is_constant(cut.inputs[0]) or len(cut.inputs) < 4 or cut.inputs[3] is None:
        return None
    gone = attr(node, "axes") or (site.facts.content(node.inputs[1]) if len(node.inputs) > 1 else None)
    axes, shape = site.facts.content(cut.inputs[3]), site.facts.shape(cut.inputs[0])
    if gone is None or axes is None:
        return None
    rank = len(shape)
    gone, axes = [a % rank for a in gone], [a % rank for a in axes]
    if set(gone) & set(axes) or any(shape[a] != 1 for a in gone):
        return None
    kept = [i for i in range(rank) if i not in gone]
    if "axes" in node.attributes:
        squeezed = site.op("Squeeze", cut.inputs[0], axes=gone)
    else:
        squeezed = site.op("Squeeze", cut.inputs[0], site.constant(gone, "axes"))
    moved = site.constant([kept.index(a) for a in axes], "axes")
    return site.op("Slice", squeezed, *cut.inputs[1:3], moved, *cut.inputs[4:])


@simplifies("Slice")
def canonical_slice(node: ir.Node, site: Site) -> ir.Value | None:
    """An end that the shapes tell to be the axis's own end is written as such, so that equal Slices look equal."""
    if len(node.inputs) < 4 or node.inputs[3] is None:
        return None
    ends, axes = site.facts.content(node.inputs[2]), site.facts.content(node.inputs[3])
    shape = site.facts.shape(node.inputs[0])
    if ends is None or axes is None or shape is None or all(isinstance(e, int) for e in ends):
        return None
    exact = [SENTINEL if e == shape[a % len(shape)] else e for e, a in zip(ends, axes, strict=True)]
    if not all(isinstance(e, int) for e in exact):
        return None
    node.replace_input_with(2, site.constant(exact, "ends"))
    return node.outputs[0]
