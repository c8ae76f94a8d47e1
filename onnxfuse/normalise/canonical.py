"""Exact rewrites into the one form that the patterns describe. They save no node: they only come before matching."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxfuse.normalise.simplify import LOSSLESS, TURNED_KEYS, attr, producer
from onnxfuse.normalise.sweep import Site, simplifies


@simplifies("Transpose")
def turned_keys(node: ir.Node, site: Site) -> ir.Value | None:
    """Keys [B, L, K, D] to [B, K, D, L] in one step, written as two: the heads first, then the last axes swapped."""
    if not site.canonical or list(attr(node, "perm") or ()) != TURNED_KEYS:
        return None
    node.replace_input_with(0, site.op("Transpose", node.inputs[0], perm=[0, 2, 1, 3]))
    node.attributes["perm"] = ir.AttrInt64s("perm", [0, 1, 3, 2])
    site.queue.append(node)
    return node.outputs[0]


@simplifies("Transpose")
def repeated_rows(node: ir.Node, site: Site) -> ir.Value | None:
    """Heads repeated for their groups in rows [B, L, K, D], then put first, are put first and then repeated."""
    merge = producer(node.inputs[0], "Reshape")
    wide = producer(merge.inputs[0], "Expand") if merge is not None else None
    apart = producer(wide.inputs[0], "Unsqueeze") if wide is not None else None
    if not site.canonical or apart is None or list(attr(node, "perm") or ()) != [0, 2, 1, 3]:
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
    first = site.op("Transpose", x, perm=[0, 2, 1, 3])
    if "axes" in apart.attributes:
        alone = site.op("Unsqueeze", first, axes=[2])
    else:
        alone = site.op("Unsqueeze", first, site.constant([2], "axes"))
    repeated = site.op("Expand", alone, site.constant([1, 1, group, 1, 1], "shape"))
    return site.op("Reshape", repeated, site.constant([0, heads * group, -1, size], "shape"))


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
def widening_cast_of_parts(node: ir.Node, site: Site) -> ir.Value | None:
    """Cast(Concat(-x2, x1)) to a wider dtype is Concat(-Cast(x2), Cast(x1)): so autocast turns halves."""
    moved = node.inputs[0].producer()
    to = site.facts.dtype(node.outputs[0])
    if not site.canonical or moved is None or moved.domain or moved.op_type not in ("Concat", "Neg", "Slice", "Split"):
        return None
    if to not in LOSSLESS.get(site.facts.dtype(node.inputs[0]), ()) or len(moved.outputs) != 1:
        return None
    if len(node.inputs[0].uses()) != 1 or node.inputs[0].is_graph_output():
        return None
    widened = len(moved.inputs) if moved.op_type == "Concat" else 1
    parts = [site.op("Cast", x, to=int(to)) for x in moved.inputs[:widened]]
    return site.op(moved.op_type, *parts, *moved.inputs[widened:], **{k: a.value for k, a in moved.attributes.items()})


# ---- heads folded into the batch: [B*N, S, D] ------------------------------------------------------------------------


def _unfolded(value: ir.Value, site: Site) -> ir.Value | None:
    """x [B, N, S, D] where `value` is Reshape(x) [B*N, S, D]."""
    fold = producer(value, "Reshape")
    if fold is None:
        return None
    source, shape = site.facts.shape(fold.inputs[0]), site.facts.shape(value)
    if source is None or shape is None or len(source) != 4 or len(shape) != 3:
        return None
    return fold.inputs[0] if shape == (source[0] * source[1], *source[2:]) else None


def _folded(x: ir.Value, site: Site) -> ir.Value:
    """x [B, N, S, L] as [B*N, S, L]."""
    kept = site.op("Gather", site.op("Shape", x), site.constant([2, 3]), axis=0)
    return site.op("Reshape", x, site.op("Concat", site.constant([-1]), kept, axis=0))


@simplifies("MatMul")
def matmul_of_folded_heads(node: ir.Node, site: Site) -> ir.Value | None:
    """A batched product of [B*N, S, D] and [B*N, D, L] is one of [B, N, S, D] and [B, N, D, L], folded."""
    if not site.canonical:
        return None
    a, b = (_unfolded(v, site) for v in node.inputs)
    if a is None or b is None or site.facts.shape(a)[:2] != site.facts.shape(b)[:2]:
        return None
    return _folded(site.op("MatMul", a, b), site)


@simplifies("Mul", "Div", "Softmax", "Cast", "IsNaN", "Tanh")
def elementwise_of_folded_heads(node: ir.Node, site: Site) -> ir.Value | None:
    """What acts on every score, or on the last axis, acts before the heads are folded as well."""
    x = _unfolded(node.inputs[0], site) if site.canonical else None
    if x is None:
        return None
    others = node.inputs[1:]
    attributes = {name: a.value for name, a in node.attributes.items()}
    if node.op_type == "Softmax":
        if attributes.get("axis", -1) not in (-1, 2):
            return None
        attributes["axis"] = -1
    if any(site.facts.tensor(o) is None or site.facts.tensor(o).size != 1 for o in others):
        return None
    return _folded(site.op(node.op_type, x, *others, **attributes), site)


@simplifies("Add")
def mask_of_folded_heads(node: ir.Node, site: Site) -> ir.Value | None:
    """A mask [B*N, S, L] that is added to folded scores is unfolded: [B, N, S, L]."""
    if not site.canonical:
        return None
    for scores, mask in (node.inputs, node.inputs[::-1]):
        x = _unfolded(scores, site)
        if x is None or site.facts.rank(mask) != 3:
            continue
        heads = site.facts.shape(x)[1]
        if not isinstance(heads, int) or site.facts.shape(mask)[0] != site.facts.shape(scores)[0]:
            continue
        kept = site.op("Gather", site.op("Shape", mask), site.constant([1, 2]), axis=0)
        target = site.op("Concat", site.constant([-1, heads]), kept, axis=0)
        return _folded(site.op("Add", x, site.op("Reshape", mask, target)), site)
    return None
