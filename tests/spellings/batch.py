"""Many cases as one model: rewritten once, run once before and once after."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from onnx import helper

from onnxfuse import session_options
from spellings import functions
from spellings.cases import Case
from spellings.draft import DTYPES, Value
from spellings.sizes import evaluated

SIZES = ({"B": 2, "S": 5, "P": 6}, {"B": 1, "S": 3, "P": 0}, {"B": 3, "S": 1, "P": 4})
# Rounded some ten times on the way, in another order by every spelling: relative to the largest entry.
TOLERANCE = {"float32": 1e-4, "float16": 3e-2}
EFFECT = {"float32": 5e-6, "float16": 2e-3}  # what a mutation changes at least: more than a few roundings do

Arrays = dict[str, np.ndarray]


def model(cases: Sequence[Case]) -> onnx.ModelProto:
    """All cases side by side."""
    writers = [c.writer for c in cases]
    graph = helper.make_graph(
        [node for w in writers for node in w.nodes],
        "spellings",
        [_info(v) for w in writers for v in w.inputs],
        [_info(v, open_sizes=True) for w in writers for v in w.outputs],
        [tensor for w in writers for tensor in w.initializers],
    )
    (opset,) = {w.opset for w in writers}
    domains = {"": opset, "com.microsoft": 1, functions.DOMAIN: 1}
    opsets = [helper.make_opsetid(*domain) for domain in domains.items()]
    parts = [function for w in writers for function in w.functions]
    return helper.make_model(graph, opset_imports=opsets, functions=parts, ir_version=10)


def _info(value: Value, open_sizes: bool = False) -> onnx.ValueInfoProto:
    shape = [None if open_sizes and isinstance(s, str) else s for s in value.shape]
    return helper.make_tensor_value_info(value.name, DTYPES[value.dtype], shape)


def feeds(cases: Sequence[Case], sizes: Mapping[str, int]) -> Arrays:
    """Random values for all inputs; those of one name are the same in a graph and in its mutations."""
    found = {}
    for c in cases:
        for value in c.writer.inputs:
            draw = np.random.default_rng((sizes["S"], c.seed, zlib.crc32(c.writer.stems[value.name].encode())))
            shape = tuple(evaluated(s, sizes) for s in value.shape)
            feeder = c.writer.feeders.get(value.name, lambda shape, draw: draw.standard_normal(shape))
            found[value.name] = np.asarray(feeder(shape, draw)).astype(value.dtype)
    return found


def outputs(proto: onnx.ModelProto | ir.Model, cases: Sequence[Case]) -> list[Arrays]:
    """What the model computes at each of `SIZES`."""
    options = session_options()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    proto = ir.to_proto(proto) if isinstance(proto, ir.Model) else proto
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return [dict(zip(names, session.run(None, feeds(cases, sizes)), strict=True)) for sizes in SIZES]


def differs(
    a: Case, b: Case, before: Sequence[Arrays], after: Sequence[Arrays], least: Mapping[str, float] = TOLERANCE
) -> bool:
    """Whether two cases, or one before and after, compute different outputs in the rows that are defined."""
    pairs = list(zip(a.writer.outputs, b.writer.outputs, strict=True))
    return any(
        _distance(a, x, old[x.name], new[y.name], sizes) > least[x.dtype]
        for x, y in pairs
        for sizes, old, new in zip(SIZES, before, after, strict=True)
    )


def _distance(case: Case, value: Value, old: np.ndarray, new: np.ndarray, sizes: Mapping[str, int]) -> float:
    """The largest difference relative to the largest entry; infinite where shapes or NaNs differ."""
    if old.shape != new.shape:
        return np.inf
    old, new = old.astype(np.float64), new.astype(np.float64)
    w = case.writer
    if w.seen is not None and value is w.outputs[-1]:
        seen = w.seen(sizes, feeds([case], sizes))
        seen = np.broadcast_to(seen, (old.shape[0], old.shape[w.seen_axis]))
        old, new = (np.moveaxis(v, w.seen_axis, 1)[seen] for v in (old, new))
    if not np.array_equal(np.isfinite(old), np.isfinite(new)):
        return np.inf
    if old.size == 0 or np.array_equal(old, new):
        return 0.0
    return float(np.abs(old - new).max() / max(np.abs(old).max(), 1e-3))


def fused(rewritten: ir.Model, cases: Sequence[Case]) -> list[Counter]:
    """The fused operators of each case."""
    found = {c.writer.prefix: Counter() for c in cases}
    for node in rewritten.graph:
        if node.domain == "onnxfuse":
            counts = found[node.name.partition("/")[0] + "/"]
            counts[node.op_type] += 1
            counts["of a part"] += "rotary_dim" in node.attributes and node.attributes["rotary_dim"].value > 0
    return [+found[c.writer.prefix] for c in cases]
