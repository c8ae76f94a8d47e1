"""Embedding: y = table[ids], the rows of a constant table.

    ids -- Gather (table) -- y

ids: [...] int64|int32; table: [V, H] float16|bfloat16|float32.
Seen in: the first node of every export. At level block only: it computes nothing, but behind a kernel of ours the
kernels of the first block can start before it ends.
Numerics: exact. An id that is no row is an error; on CUDA, where ONNX Runtime gives zeros, the result is NaN.
Refuses: tables that a run computes.
"""

from onnxfuse.dsl import constant, fusion, op, tensor


@fusion(stage="block", op="Embedding", tolerance={"float32": 0.0, "float16": 0.0, "bfloat16": 0.0})
def embedding(ids=tensor(), table=constant("_ _")):
    """Rows of a table, the tokens' embeddings for one."""
    return op.Gather(table, ids, axis=0)


@embedding.check
def supported(m):
    yield m.table.dtype in m.FLOATS, "the table is {m.table.dtype}; kernels exist for {m.FLOATS}"
    yield m.ids.dtype in ("int64", "int32"), "the ids are {m.ids.dtype}, expected int64 or int32"


@embedding.rewrite
def fused(new, m):
    return new.Embedding(m.ids, m.table)
