"""Attention against what ONNX Runtime does without it: `python -m onnxfuse.custom_ops.attention.bench`.

Every candidate runs the same inputs in turn, so that what else the machine does hits them alike; ratios are of medians.

    kernel     this operator
    body       its function body, run by ONNX Runtime
    exported   the usual exported graph: Concat, repeated keys and values, MatMul, Softmax, MatMul
    gqa        com.microsoft.GroupQueryAttention with separate past and present

GB/s count what has to move, the cache read and written once; GFLOP/s count the visible scores only.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

import onnxfuse
from onnxfuse.custom_ops.attention.cases import case
from onnxfuse.custom_ops.case import DTYPES, Case, single_node_model
from onnxfuse.custom_ops.functions import attach

OUTPUTS = ["y", "present_key", "present_value"]
MODELS = {"7b": ((32, 32), 128), "1b": ((32, 4), 64), "8b": ((32, 8), 128), "small": ((12, 12), 64)}
POINTS = ((1, 128), (1, 1024), (1, 4000), (16, 1024), (128, 0), (512, 0), (2048, 0))  # new tokens, past


def with_body(one: Case) -> onnx.ModelProto:
    model = single_node_model("Attention", one, opset=17)
    (node,) = model.graph
    attach(node, model)
    return ir.to_proto(model)


def peer(one: Case, text: str) -> onnx.ModelProto:
    """A model with the inputs and outputs of `one`, its nodes in ONNX's text form."""
    dtype = {"float32": "float", "float16": "float16", "bfloat16": "bfloat16"}[one.outputs["y"]]

    def typed(name: str, shape: Sequence[int]) -> str:
        return f"{dtype}[{','.join(map(str, shape))}] {name}"

    inputs = ", ".join(typed(name, spec.shape) for name, spec in one.inputs.items() if spec is not None)
    outputs = ", ".join(f"{dtype}[{','.join('abcd'[: 3 if name == 'y' else 4])}] {name}" for name in OUTPUTS)
    model = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["" : 17, "com.microsoft" : 1]>\npeer ({inputs}) => ({outputs}) {{{text}}}'
    )
    n, kv = one.attributes["num_heads"], one.attributes["kv_num_heads"]
    new, features = one.inputs["q"].shape[1:]
    keys, size = new + (one.inputs["past_key"].shape[2] if one.inputs["past_key"] else 0), features // n
    causal = np.where(np.tri(new, keys, keys - new, dtype=bool), 0, np.finfo(np.float32).min)
    constants = {
        "mask": causal.astype(DTYPES[one.outputs["y"]])[None, None],
        "scale": np.array(size**-0.5, DTYPES[one.outputs["y"]]),
        "by_head": np.array([0, 0, n, size]),
        "by_kv_head": np.array([0, 0, kv, size]),
        "repeated": np.array([1, kv, n // kv, keys, size]),
        "flat": np.array([1, n, keys, size]),
        "joined": np.array([0, 0, features]),
        "two": np.array([2]),
        "last": np.array([keys - 1], np.int32),
        "total": np.array(keys, np.int32),
    }
    model.graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items())
    return model


def exported(one: Case) -> onnx.ModelProto:
    """What torch.onnx.export makes of transformers' attention."""

    def cached(x: str, name: str) -> str:
        heads = f"{name}_heads = Reshape ({x}, by_kv_head)"
        if one.inputs["past_key"] is None:
            return f"{heads} present_{name} = Transpose <perm = [0, 2, 1, 3]> ({name}_heads)"
        return (
            f"{heads} {name}_own = Transpose <perm = [0, 2, 1, 3]> ({name}_heads) "
            f"present_{name} = Concat <axis = 2> (past_{name}, {name}_own)"
        )

    def repeated(name: str) -> str:
        if one.attributes["num_heads"] == one.attributes["kv_num_heads"]:
            return f"{name}_all = Identity (present_{name})"
        return (
            f"{name}_5d = Unsqueeze (present_{name}, two) {name}_wide = Expand ({name}_5d, repeated) "
            f"{name}_all = Reshape ({name}_wide, flat)"
        )

    return peer(
        one,
        f"""q_heads = Reshape (q, by_head) queries = Transpose <perm = [0, 2, 1, 3]> (q_heads)
        {cached("k", "key")} {cached("v", "value")} {repeated("key")} {repeated("value")}
        key_t = Transpose <perm = [0, 1, 3, 2]> (key_all) products = MatMul (queries, key_t)
        scaled = Mul (products, scale) scores = Add (scaled, mask)
        weights = Softmax <axis = -1> (scores) heads = MatMul (weights, value_all)
        back = Transpose <perm = [0, 2, 1, 3]> (heads) y = Reshape (back, joined)""",
    )


def gqa(one: Case) -> onnx.ModelProto:
    n, kv = one.attributes["num_heads"], one.attributes["kv_num_heads"]
    past = "past_key, past_value" if one.inputs["past_key"] else ", "
    return peer(
        one,
        f"y, present_key, present_value = com.microsoft.GroupQueryAttention <num_heads = {n}, kv_num_heads = {kv}> "
        f"(q, k, v, {past}, last, total)",
    )


def candidate(model: onnx.ModelProto | ir.Model, one: Case, threads: int, ops: list[str] | None) -> Callable[[], Any]:
    """A function that runs the model once, on memory that ONNX Runtime owns."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # not every peer uses every constant
    session = onnxfuse.session(model, options=options, ops=ops)
    feeds = {name: onnxruntime.OrtValue.ortvalue_from_numpy(x) for name, x in one.arrays().items() if x is not None}
    binding = session.io_binding()
    for name, value in feeds.items():
        binding.bind_ortvalue_input(name, value)
    for name in OUTPUTS:
        binding.bind_output(name)
    return lambda: session.run_with_iobinding(binding)


def compare(one: Case, threads: int, seconds: float) -> dict[str, float]:
    """The median time of each candidate, in seconds."""
    runs = {
        "kernel": candidate(with_body(one), one, threads, None),
        "body": candidate(with_body(one), one, threads, []),
        "exported": candidate(exported(one), one, threads, []),
        "gqa": candidate(gqa(one), one, threads, []),
    }
    # A single thread's own time does not count what other processes take; several threads wait for each other.
    clock = time.thread_time if threads == 1 else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in runs}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times["gqa"]) < 9:
        for name, run in runs.items():
            time.sleep(0.02)  # until the threads of the one before have stopped waiting actively for more work
            run()  # and the caches hold what this one leaves there
            for _ in range(3):
                start = clock()
                run()
                times[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def moved_bytes(one: Case) -> int:
    arrays = one.arrays()
    present = sum(
        arrays[x].nbytes + (0 if arrays[p] is None else arrays[p].nbytes)
        for x, p in (("k", "past_key"), ("v", "past_value"))
    )
    return 2 * arrays["q"].nbytes + 2 * present


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="7b,1b", help=f"of {', '.join(MODELS)}")
    parser.add_argument("--threads", default="2", help="counts, e.g. 1,2")
    parser.add_argument("--points", default=",".join(f"{new}:{past}" for new, past in POINTS), help="new:past, ...")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each row")
    asked = parser.parse_args()
    print(f"{'':27}{'kernel':>10}{'GB/s':>8}{'GFLOP/s':>9}   kernel's time relative to: body  exported  gqa")
    for name in asked.models.split(","):
        heads, size = MODELS[name]
        for threads in map(int, asked.threads.split(",")):
            for point in asked.points.split(","):
                new, past = map(int, point.split(":"))
                one = case(new=new, past=past or None, heads=heads, size=size)
                t = compare(one, threads, asked.seconds)
                ratios = "".join(f"{t['kernel'] / t[other]:10.2f}" for other in ("body", "exported", "gqa"))
                print(
                    f"{name:>6} x{threads} new {new:4} past {past:4} {t['kernel'] * 1e6:8.0f} us"
                    f"{moved_bytes(one) / t['kernel'] / 1e9:8.1f}{one.flops / t['kernel'] / 1e9:9.1f}{'':20}{ratios}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
