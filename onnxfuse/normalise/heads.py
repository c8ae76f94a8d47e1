"""Heads folded into the batch, [B*N, S, D], or apart by group, [B, K, G, S, D]: computed on [B, N, S, D], N = K*G.

A fold is a Reshape. Products and what acts on each score move in front of it, until it meets the one that undoes it.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxfuse.normalise.axes import listed_axes, with_axes
from onnxfuse.normalise.simplify import TURNED_KEYS_IN_STEPS, attr, producer, reshaped, written
from onnxfuse.normalise.sweep import Site, simplifies
from onnxfuse.shapes import Shape, product

HEADS_FIRST, TURNED = TURNED_KEYS_IN_STEPS  # [B, S, N, D] <-> [B, N, S, D] <-> [B, N, D, S]
GROUPS_FIRST = [0, 2, 3, 1, 4]  # [B, S, K, G, D] -> [B, K, G, S, D]
GROUPS_BACK = [0, 3, 1, 2, 4]
TURNED_IN_GROUPS = [0, 1, 2, 4, 3]


def is_folded(value: ir.Value, site: Site) -> bool:
    """Whether `value` is heads folded or apart."""
    return _fold(value, site) is not None


def repeated(x: ir.Value, heads: int, group: int, site: Site) -> ir.Value:
    """x [B, K, L, D] with each of its K heads `group` times, as exporters write it: [B, K*G, L, D]."""
    rest = [size if isinstance(size, int) else -1 for size in site.facts.shape(x)[2:]]
    wide = site.op("Expand", with_axes("Unsqueeze", x, [2], site), site.constant([1, 1, group, 1, 1], "shape"))
    return site.op("Reshape", wide, site.constant([0, heads * group, *rest], "shape"))


@simplifies("Squeeze", "Reshape")
def only_head_repeated(node: ir.Node, site: Site) -> ir.Value | None:
    """Rows [B, L, D] that are the only head, [B, 1, L, D], before it is repeated: that in two steps, not in three."""
    wide = producer(node.inputs[0], "Expand")
    apart = producer(wide.inputs[0], "Unsqueeze") if wide is not None else None
    shape = site.facts.shape(apart.inputs[0]) if site.canonical and apart is not None else None
    if shape is None or len(shape) != 3:
        return None
    batch, *row = shape
    five, out = site.facts.shape(wide.outputs[0]), site.facts.shape(node.outputs[0])
    if five is None or len(five) != 5 or not isinstance(five[2], int) or five != (batch, 1, five[2], *row):
        return None
    if out != (batch, five[2], *row):
        return None
    head = with_axes("Unsqueeze", apart.inputs[0], [1], site)
    return site.op("Expand", head, site.constant([1, five[2], 1, 1], "shape"))


def _fold(value: ir.Value, site: Site) -> ir.Node | None:
    """The node that takes [B, N, S, D] to `value` [B*N, S, D] or [B, K, G, S, D], or of the latter to the former."""
    fold = producer(value, "Reshape") or producer(value, "Unsqueeze")  # the latter where a group has one head
    if fold is None:
        return None
    source, shape = site.facts.shape(fold.inputs[0]), site.facts.shape(value)
    if source is None or shape is None:
        return None
    if len(shape) == 3 and len(source) in (4, 5):
        return fold if shape == (product(source[:-2]), *source[-2:]) else None
    return fold if len(shape) == 5 and source == _of_all_heads(shape) else None


def _of_all_heads(shape: Shape) -> Shape | None:
    """(B, K*G, S, D) for [B, K, G, S, D] with known K and G."""
    batch, groups, group, *rest = shape
    return (batch, groups * group, *rest) if isinstance(groups, int) and isinstance(group, int) else None


def _unfolded(value: ir.Value, site: Site) -> ir.Value | None:
    """x [B, N, S, D] where `value` is a fold of it."""
    fold = _fold(value, site)
    if fold is None:
        return None
    source = site.facts.shape(fold.inputs[0])
    return fold.inputs[0] if len(source) == 4 else reshaped(fold.inputs[0], _of_all_heads(source), site)


def _folded(x: ir.Value, like: ir.Value, site: Site, sizes: ir.Value | None = None) -> ir.Value:
    """x [B, N, S, L] folded as `like` is; `sizes` holds S and L, if `like` has others.

    They are not read from x: a mask made of sizes that are equal would depend on the scores that it hides.
    """
    fold, shape, unfolded = _fold(like, site), site.facts.shape(like), site.facts.shape(x)
    if unfolded == site.facts.shape(fold.inputs[0]):
        return site.op(fold.op_type, x, *fold.inputs[1:], **written(fold))
    if sizes is None and isinstance(unfolded[-1], int) and len(shape) == 5:
        return site.op("Reshape", x, site.constant([0, *shape[1:3], -1, unfolded[-1]], "shape"))
    if sizes is None:
        sizes = site.op("Gather", site.op("Shape", x), site.constant([2, 3]), axis=0)
    first = [-1] if len(shape) == 3 else [0, *shape[1:3]]
    return site.op("Reshape", x, site.op("Concat", site.constant(first), sizes, axis=0))


@simplifies("Transpose")
def groups_first(node: ir.Node, site: Site) -> ir.Value | None:
    """Rows [B, S, K, G, D] whose groups are put first: all heads are, then they are parted."""
    shape = site.facts.shape(node.inputs[0])
    if not site.canonical or list(attr(node, "perm") or ()) != GROUPS_FIRST or shape is None:
        return None
    batch, length, groups, group, size = shape
    if not all(isinstance(s, int) for s in (groups, group, size)):
        return None
    rows = reshaped(node.inputs[0], (batch, length, groups * group, size), site)
    if rows is None:
        return None
    x = site.op("Transpose", rows, perm=HEADS_FIRST)
    return site.op("Reshape", x, site.constant([0, groups, group, -1, size], "shape"))


@simplifies("Transpose")
def groups_back(node: ir.Node, site: Site) -> ir.Value | None:
    """Heads apart by group [B, K, G, S, D] to rows [B, S, K, G, D]: all heads' rows are parted."""
    if not site.canonical or list(attr(node, "perm") or ()) != GROUPS_BACK:
        return None
    x = _unfolded(node.inputs[0], site)
    _, groups, group, _, size = site.facts.shape(node.inputs[0])
    if x is None or not isinstance(size, int):
        return None
    return site.op("Reshape", site.op("Transpose", x, perm=HEADS_FIRST), site.constant([0, 0, groups, group, size]))


@simplifies("MatMul")
def matmul_of_folded_heads(node: ir.Node, site: Site) -> ir.Value | None:
    """A product of folded [B, N, S, D] and [B, N, D, L] is the product of both, folded; a group shares the latter."""
    if not site.canonical:
        return None
    left, right = node.inputs
    a = _unfolded(left, site)
    if a is None:
        return None
    b = _unfolded(right, site) if site.facts.rank(left) == 3 else _of_groups(right, site.facts.shape(left), site)
    if b is None or site.facts.shape(a)[:2] != site.facts.shape(b)[:2]:
        return None
    sizes = [site.op("Gather", site.op("Shape", v), site.constant([axis]), axis=0) for v, axis in ((a, 2), (b, 3))]
    return _folded(site.op("MatMul", a, b), left, site, site.op("Concat", *sizes, axis=0))


def _of_groups(value: ir.Value, queries: Shape, site: Site) -> ir.Value | None:
    """`value` [B, K, 1|G, D, L], which meets the queries [B, K, G, S, D], as [B, N, D, L]."""
    shape, (batch, groups, group, *_) = site.facts.shape(value), queries
    if shape is None or len(shape) != 5 or shape[:2] != (batch, groups) or not {int} & set(map(type, shape[3:])):
        return None  # a Reshape can leave out one size
    if shape[2] == 1:
        return _for_every_head(value, groups, group, site)
    return reshaped(value, _of_all_heads(shape), site) if shape[2] == group else None


def _for_every_head(value: ir.Value, groups: int, group: int, site: Site) -> ir.Value:
    """`value` [B, K, (1,) D, L] as [B, K*G, D, L]; what turns or scales it does so once it is repeated."""
    node, shape = value.producer(), site.facts.shape(value)
    turn = producer(value, "Transpose")
    if turn is not None and list(attr(turn, "perm") or ()) in (TURNED, TURNED_IN_GROUPS):
        return site.op("Transpose", _for_every_head(turn.inputs[0], groups, group, site), perm=TURNED)
    if producer(value, "Mul") or producer(value, "Div"):
        x, factor = node.inputs
        number = site.facts.tensor(factor)
        if number is not None and number.size == 1 and site.facts.shape(x) == shape:
            return site.op(node.op_type, _for_every_head(x, groups, group, site), factor)
    if len(shape) == 4:
        return repeated(value, groups, group, site)
    if producer(value, "Unsqueeze") and site.facts.shape(node.inputs[0]) == (*shape[:2], *shape[3:]):
        return _for_every_head(node.inputs[0], groups, group, site)
    return repeated(with_axes("Squeeze", value, [2], site), groups, group, site)


@simplifies("Add", "Sub", "Mul", "Div", "Reciprocal", "Exp", "Tanh", "Cast", "IsNaN", "Where")
def elementwise_of_folded_heads(node: ir.Node, site: Site) -> ir.Value | None:
    """What acts on every score acts before the heads are folded as well, on numbers, scores and masks."""
    shape = site.facts.shape(node.outputs[0]) if site.canonical else None
    if shape is None:
        return None
    every_head = (v for v in node.inputs if is_folded(v, site) and site.facts.shape(v)[:-2] == shape[:-2])
    folded = next(every_head, None)
    if folded is None:
        return None
    operands = [_beside(value, folded, site) for value in node.inputs]
    return None if None in operands else _folded(site.op(node.op_type, *operands, **written(node)), folded, site)


@simplifies("Softmax", "ReduceMax", "ReduceSum")
def along_the_keys(node: ir.Node, site: Site) -> ir.Value | None:
    """What acts along the last axis, and keeps it, acts before the heads are folded as well."""
    folded = node.inputs[0]
    x = _unfolded(folded, site) if site.canonical else None
    axes = [attr(node, "axis", -1)] if node.op_type == "Softmax" else listed_axes(node, site)
    if x is None or not attr(node, "keepdims", 1) or axes not in ([-1], [site.facts.rank(folded) - 1]):
        return None
    attributes, operands = written(node), []
    if node.op_type == "Softmax":
        attributes["axis"] = -1
    elif "axes" in attributes:
        attributes["axes"] = [-1]
    else:
        operands = [site.constant([-1], "axes")]
    return _folded(site.op(node.op_type, x, *operands, **attributes), folded, site)


def _beside(value: ir.Value, folded: ir.Value, site: Site) -> ir.Value | None:
    """What `value`, a number, scores or a mask beside `folded`, is beside what is folded, [B, N, S, L]."""
    number, shape, fold = site.facts.tensor(value), site.facts.shape(value), site.facts.shape(folded)
    if shape is None:
        return None
    if number is not None and number.size == 1:
        return reshaped(value, (), site) if len(shape) > 1 else value
    batch, *heads = site.facts.shape(_fold(folded, site).inputs[0])[:-2]
    heads = product(heads)
    if len(shape) == len(fold) and shape[:-2] == fold[:-2] and is_folded(value, site):
        x = _unfolded(value, site)
        return x if x is not None and site.facts.shape(x)[:2] == (batch, heads) else None
    if len(shape) == 5 and shape[1:3] == (1, 1):
        return with_axes("Squeeze", value, [1], site)
    if len(shape) < 5 and all(size == 1 for size in shape[:-2]):
        return value
    if len(fold) != 3 or shape[:-2] != fold[:-2] or not isinstance(heads, int):
        return None
    kept = site.op("Gather", site.op("Shape", value), site.constant([1, 2]), axis=0)
    return site.op("Reshape", value, site.op("Concat", site.constant([-1, heads]), kept, axis=0))
