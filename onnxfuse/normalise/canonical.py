"""Exact rewrites into the one form that the patterns describe. They save no node: they only come before matching."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxfuse.normalise.heads import HEADS_FIRST, is_folded, repeated
from onnxfuse.normalise.simplify import (
    FLOATS,
    LOSSLESS,
    TURNED_KEYS,
    TURNED_KEYS_IN_STEPS,
    attr,
    producer,
    same_shape,
    written,
)
from onnxfuse.normalise.sweep import Site, replace, simplifies


@simplifies("Transpose")
def turned_keys(node: ir.Node, site: Site) -> ir.Value | None:
    """Keys [B, L, K, D] to [B, K, D, L] in one step, written as two: the heads first, then the last axes swapped."""
    if not site.canonical or list(attr(node, "perm") or ()) != TURNED_KEYS:
        return None
    heads_first, turned = TURNED_KEYS_IN_STEPS
    node.replace_input_with(0, site.op("Transpose", node.inputs[0], perm=heads_first))
    node.attributes["perm"] = ir.AttrInt64s("perm", turned)
    site.queue.append(node)
    return node.outputs[0]


@simplifies("Transpose")
def repeated_rows(node: ir.Node, site: Site) -> ir.Value | None:
    """Heads repeated for their groups in rows [B, L, K, D], then put first, are put first and then repeated."""
    merge = producer(node.inputs[0], "Reshape")
    wide = producer(merge.inputs[0], "Expand") if merge is not None else None
    apart = producer(wide.inputs[0], "Unsqueeze") if wide is not None else None
    if not site.canonical or apart is None or list(attr(node, "perm") or ()) != HEADS_FIRST:
        return None
    x, merged = apart.inputs[0], merge.outputs[0]
    shapes = [site.facts.shape(v) for v in (x, apart.outputs[0], wide.outputs[0], merged)]
    if (
        None in shapes
        or [len(s) for s in shapes] != [4, 5, 5, 4]
        or len(merged.uses()) != 1
        or merged.is_graph_output()
    ):
        return None
    (batch, length, heads, size), single, several, out = shapes
    group = several[3]
    if not all(isinstance(s, int) for s in (heads, group, size)) or single != (batch, length, heads, 1, size):
        return None
    if several != (batch, length, heads, group, size) or out != (batch, length, heads * group, size):
        return None
    return repeated(site.op("Transpose", x, perm=HEADS_FIRST), heads, group, site)


@simplifies("com.microsoft.FusedMatMul")
def fused_matmul(node: ir.Node, site: Site) -> ir.Value | None:
    """alpha * (A' @ B') as ONNX Runtime's optimizer writes it, in standard operators."""
    batches = attr(node, "transBatchA", 0) or attr(node, "transBatchB", 0)
    ranks = [site.facts.rank(v) for v in node.inputs]
    if not site.canonical or batches or None in ranks or min(ranks) < 2:
        return None
    operands = []
    for value, rank, name in zip(node.inputs, ranks, ("transA", "transB"), strict=True):
        swapped = [*range(rank - 2), rank - 1, rank - 2]
        operands.append(site.op("Transpose", value, perm=swapped) if attr(node, name, 0) else value)
    scale = np.array(attr(node, "alpha", 1.0), dtype=site.facts.dtype(node.inputs[0]).numpy())
    return site.op("Mul", site.op("MatMul", *operands), site.constant(scale))


@simplifies("Cast")
def sign_after_cast(node: ir.Node, site: Site) -> ir.Value | None:
    """What is negated and then cast is cast first: floating-point numbers round to either side of zero alike."""
    negated = producer(node.inputs[0], "Neg")
    if not site.canonical or negated is None or len(node.inputs[0].uses()) != 1 or node.inputs[0].is_graph_output():
        return None
    source, to = site.facts.dtype(node.inputs[0]), site.facts.dtype(node.outputs[0])
    if not {source, to} <= FLOATS:
        return None
    return site.op("Neg", site.op("Cast", negated.inputs[0], to=int(to)))


@simplifies("Concat")
def sign_inside_a_concat(node: ir.Node, site: Site) -> ir.Value | None:
    """Concat(-Cast(a), Cast(b)) is Cast(Concat(-a, b)): half of a tensor is turned before all of it is widened."""
    signs = [producer(x, "Neg") for x in node.inputs]
    casts = [producer(x if s is None else s.inputs[0], "Cast") for x, s in zip(node.inputs, signs, strict=True)]
    if not site.canonical or any(c is None for c in casts) or not any(signs):
        return None
    sources = [c.inputs[0] for c in casts]
    dtypes, to = {site.facts.dtype(x) for x in sources}, site.facts.dtype(node.inputs[0])
    if len(dtypes) > 1 or to not in LOSSLESS.get(dtypes.pop(), ()):
        return None
    parts = [x if s is None else site.op("Neg", x) for x, s in zip(sources, signs, strict=True)]
    return site.op("Cast", site.op("Concat", *parts, axis=attr(node, "axis")), to=int(to))


@simplifies("Concat", "Slice", "Split", "Transpose", "Reshape", "Unsqueeze", "Squeeze", "Gather", "Expand")
def cast_after_movement(node: ir.Node, site: Site) -> ir.Value | None:
    """What is widened and then moved is moved first: fewer bytes. When tidying, only if no node is added."""
    count = len(node.inputs) if node.op_type == "Concat" else 1
    casts = [producer(x, "Cast") for x in node.inputs[:count]]
    if any(c is None for c in casts):
        return None
    if not site.canonical and (len(node.outputs) > 1 or any(len(x.uses()) > 1 for x in node.inputs[:count])):
        return None
    sources = [c.inputs[0] for c in casts]
    dtypes, to = {site.facts.dtype(x) for x in sources}, site.facts.dtype(node.inputs[0])
    if len(dtypes) > 1 or not _widens(dtypes.pop(), to) or is_folded(node.outputs[0], site):
        return None
    attributes = written(node)
    moved = site.op(node.op_type, *sources, *node.inputs[count:], outputs=len(node.outputs), **attributes)
    parts = moved if isinstance(moved, tuple) else (moved,)
    widened = [site.op("Cast", part, to=int(to)) for part in parts]
    for output, new in zip(node.outputs[1:], widened[1:], strict=True):
        if not replace(output, new, site.facts):
            return None
    return widened[0]


def _widens(source: ir.DataType | None, to: ir.DataType | None) -> bool:
    """Whether a Cast moves less data when it comes later, or turns integers such as positions into numbers."""
    if source is None or to is None:
        return False
    return to in LOSSLESS.get(source, ()) or (source.is_integer() and to in FLOATS)


@simplifies("Transpose", "Reshape", "Unsqueeze", "Squeeze")
def factor_after_movement(node: ir.Node, site: Site) -> ir.Value | None:
    """A tensor that is negated, or multiplied by a number, is moved first."""
    scaled = node.inputs[0].producer()
    if not site.canonical or scaled is None or scaled.domain or scaled.op_type not in ("Mul", "Div", "Neg"):
        return None
    if is_folded(node.outputs[0], site):
        return None  # what acts on folded heads comes before the fold
    attributes = written(node)
    if scaled.op_type == "Neg":
        return site.op("Neg", site.op(node.op_type, scaled.inputs[0], *node.inputs[1:], **attributes))
    x, factor = scaled.inputs
    if scaled.op_type == "Mul" and site.facts.is_constant(x):
        x, factor = factor, x
    tensor = site.facts.tensor(factor)
    if tensor is None or tensor.size != 1 or not same_shape(x, scaled.outputs[0], site):
        return None
    users = [use.node for use in node.inputs[0].uses() if use.node.op_type != "Shape"]
    if site.facts.is_constant(x) or len(users) > 1 or node.inputs[0].is_graph_output():
        return None
    moved = site.op(node.op_type, x, *node.inputs[1:], **attributes)
    return site.op(scaled.op_type, moved, site.constant(tensor.numpy().reshape(())))


@simplifies("Transpose")
def turn_after_movement(node: ir.Node, site: Site) -> ir.Value | None:
    """The cosine or sine of a table is taken after the table is transposed."""
    turn = producer(node.inputs[0], "Cos") or producer(node.inputs[0], "Sin")
    if not site.canonical or turn is None or len(node.inputs[0].uses()) != 1 or node.inputs[0].is_graph_output():
        return None
    return site.op(turn.op_type, site.op("Transpose", turn.inputs[0], perm=attr(node, "perm")))


@simplifies("Where")
def number_last(node: ir.Node, site: Site) -> ir.Value | None:
    """Where(c, number, x) is Where(not c, x, number); what replaces NaNs stays as exporters write it."""
    condition, number, tensor = node.inputs
    content = site.facts.tensor(number)
    if not site.canonical or content is None or content.size != 1 or site.facts.is_constant(tensor):
        return None
    if producer(condition, "IsNaN"):
        return None
    negated = producer(condition, "Not")
    seen = negated.inputs[0] if negated is not None else site.op("Not", condition)
    return site.op("Where", seen, tensor, number)


# ---- linear layers ---------------------------------------------------------------------------------------------------


@simplifies("Gemm")
def turned_weight(node: ir.Node, site: Site) -> ir.Value | None:
    """A constant that Gemm transposes is transposed once and for all."""
    if not site.canonical or not attr(node, "transB", 0) or not site.facts.is_constant(node.inputs[1]):
        return None
    weight = site.op("Transpose", node.inputs[1], perm=[1, 0])
    return site.op("Gemm", node.inputs[0], weight, *node.inputs[2:], **written(node, "transB"))


@simplifies("Reshape")
def bias_after_reshape(node: ir.Node, site: Site) -> ir.Value | None:
    """Reshape(y + b) is Reshape(y) + b where the last axis stays."""
    total = producer(node.inputs[0], "Add")
    shape = site.facts.shape(node.outputs[0])
    if not site.canonical or total is None or not shape or len(node.inputs[0].uses()) != 1:
        return None
    for y, bias in (total.inputs, total.inputs[::-1]):
        if site.facts.is_constant(bias) and site.facts.shape(bias) == (shape[-1],) and producer(y, "MatMul"):
            known = site.facts.shape(y)
            if known is not None and known[-1] == shape[-1]:
                return site.op("Add", site.op("Reshape", y, node.inputs[1]), bias)
    return None


@simplifies("Reshape")
def product_of_rows(node: ir.Node, site: Site) -> ir.Value | None:
    """Rows [B*S, K] that are multiplied by a matrix and put back into [B, S, N]: the product of [B, S, K]."""
    matmul = producer(node.inputs[0], "MatMul")
    rows = producer(matmul.inputs[0], "Reshape") if matmul is not None else None
    if not site.canonical or rows is None or len(node.inputs[0].uses()) != 1:
        return None
    x, weight = rows.inputs[0], matmul.inputs[1]
    shapes = [site.facts.shape(v) for v in (x, rows.outputs[0], weight, node.outputs[0])]
    if any(s is None for s in shapes) or len(shapes[2]) != 2:
        return None
    before, flat, _, after = shapes
    same = before[-1] == flat[-1] and after == (*before[:-1], shapes[2][1])
    return site.op("MatMul", x, weight) if same else None
