"""Rows that see no key, zeroed behind attention: the operator does that itself.

    attended -- (Reshape) -- Where(seen, ., 0) -- (Reshape) -- y

attended: [B, S, N*E], of onnxfuse Attention; zeroed as [B, N, S, E] or [B, S, N, E]; seen: bool, for every query.
transformers' exporter writes it for scaled_dot_product_attention.
Numerics: none, the Where goes.
Refuses: `seen` that is not just where Attention's masks show a key (both by what they compute, onnxfuse.masks), and
Attention with a bias, in which a hidden key is not told from a small score.
"""

from onnxfuse import masks
from onnxfuse.dsl import any_of, fusion, op, tensor
from onnxfuse.heads import BIAS, HEADS_FIRST, MASK, PAST_KEY, given


def is_attended(value, facts):
    """Whether onnxfuse Attention makes the value."""
    node = value.producer()
    return node is not None and (node.domain, node.op_type) == ("onnxfuse", "Attention")


def splits_heads(value, facts):
    """Whether the Reshape takes [B, S, N*E] to [B, S, N, E]."""
    flat, rows = facts.shape(value.producer().inputs[0]), facts.shape(value)
    return flat is not None and rows is not None and len(rows) == 4 and flat == (*rows[:2], rows[2] * rows[3])


@fusion(stage="layout", op="Attention", tolerance={"float32": 0.0, "float16": 0.0, "bfloat16": 0.0})
def unattended_rows(
    attended=tensor("B S _").where(is_attended, "this is no result of Attention"),
    seen=tensor("B|1 1 S|1 1"),
    seen_rows=tensor("B|1 S|1 1 1"),
):
    """Rows that see no key, zeroed behind Attention."""
    rows = op.Reshape(attended, ...).where(splits_heads, "the Reshape does not split the heads")
    heads = op.Transpose(rows, perm=HEADS_FIRST)
    zeroed = any_of(op.Transpose(op.Where(seen, heads, 0.0), perm=HEADS_FIRST), op.Where(seen_rows, rows, 0.0))
    return op.Reshape(zeroed, ...)


@unattended_rows.check
def zeroed_by_attention(m):
    node = m.attended.value.producer()
    yield m.attended.shape is not None, "{m.attended} has an unknown shape"
    yield m.facts.shape(m.outputs[0]) == m.attended.shape, "the result is {m.outputs[0]}, not shaped like {m.attended}"
    yield given(node, BIAS) is None, "Attention has a bias"
    seen, sizes = m.seen or m.seen_rows, (m.B, m.S, keys(node, m.facts))
    yield masks.tells_rows(seen.value, shown(node), sizes, m.facts), f"{seen} is not just where a query sees a key"


@unattended_rows.rewrite
def without_zeroing(new, m):
    return m.attended


def keys(node, facts):
    """How many keys Attention sees, the past among them."""
    past = given(node, PAST_KEY)
    axis = 1 if node.attributes.get_int("past_rows", 0) else 2
    return facts.shape(node.inputs[1])[-2] + (facts.shape(past)[axis] if past is not None else 0)


def shown(node):
    """What Attention's attributes and its mask let through."""
    padding = given(node, MASK)
    cast = padding.producer() if padding is not None else None
    if cast is not None and cast.op_type == "Cast":  # of a float mask
        padding = cast.inputs[0]
    return masks.Mask(bool(node.attributes.get_int("causal", 0)), node.attributes.get_int("window", 0), padding)
