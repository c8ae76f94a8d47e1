"""Times the CUDA kernels beside what the device reaches at most: `python -m onnxfuse.custom_ops.bench --cuda`.

A model holds a case's node many times, each with inputs of its own, so that together they outgrow the caches; one CUDA
graph runs them all, so that what is timed is the device. The ceilings are those of ONNX Runtime's own operators: an
elementwise one and a matrix product.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime

import onnxfuse
from onnxfuse.custom_ops.case import DTYPES, Case, single_node_model
from onnxfuse.custom_ops.functions import part

CUDA = "CUDAExecutionProvider"
CACHES = 256 << 20  # bytes; larger than any device's caches
COPIES = 32  # of a node at most
REPEATS = 15
RUNS = 4  # of the graph in one repeat


def report(operators: Sequence[str]) -> None:
    """Prints a table of every benchmark case for CUDA."""
    bandwidth, rate = ceilings()
    print(f"the device at most: {bandwidth / 1e12:.2f} TB/s (read and written), {rate / 1e12:.0f} TFLOP/s (float16)")
    for operator in operators:
        print(f"\n{operator:64} kernel us     TB/s  of most  TFLOP/s  of most")
        for case in part(operator, "cases").cases():
            if case.benchmark and case.device != "cpu":
                print(line(operator, case, bandwidth, rate), flush=True)


def line(operator: str, case: Case, bandwidth: float, rate: float) -> str:
    """One case in numbers."""
    arrays = {name: array for name, array in case.arrays().items() if array is not None}
    size = sum(array.nbytes for array in arrays.values())
    copies = max(2, min(COPIES, CACHES // size + 1))
    model, inputs = repeated(single_node_model(operator, case, 18), arrays, copies)
    in_place = {}
    if case.attributes.get("shared_cache"):
        in_place = {x: x.replace("past_", "present_") for x in inputs if x.startswith("past_")}
    took, outputs = measure(ir.to_proto(model), inputs, in_place)
    took, outputs = took / copies, outputs // copies
    speed, work = (case.traffic or size + outputs) / took, case.flops / took
    return (
        f"{case.name[:64]:64}{took * 1e6:10.1f}{speed / 1e12:9.2f}{speed / bandwidth:9.0%}"
        f"{work / 1e12:9.1f}{work / rate:9.0%}"
    )


def repeated(model: ir.Model, arrays: Mapping[str, np.ndarray], copies: int) -> tuple[ir.Model, dict[str, np.ndarray]]:
    """The model of one node with `copies` of it, and the inputs of them all."""
    node = model.graph[0]
    inputs = dict(arrays)
    for i in range(1, copies):
        sources = [x and ir.val(f"{x.name}_{i}", x.dtype, x.shape) for x in node.inputs]
        outputs = [ir.val(x.name and f"{x.name}_{i}", x.dtype) for x in node.outputs]
        attributes = node.attributes.values()
        model.graph.append(ir.Node(node.domain, node.op_type, sources, attributes, outputs=outputs, name=f"node_{i}"))
        model.graph.inputs.extend(x for x in sources if x is not None)
        model.graph.outputs.extend(x for x in outputs if x.name)
        inputs |= {f"{name}_{i}": array for name, array in arrays.items()}
    return model, inputs


def ceilings() -> tuple[float, float]:
    """Bytes a second of an elementwise operator; operations a second of a float16 matrix product."""
    count, side = 1 << 28, 8192
    model = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["": 18]> g (float16[{count}] x) => (float16[{count}] y) {{ y = Neg (x) }}'
    )
    copy, _ = measure(model, {"x": np.ones(count, np.float16)}, {})
    square = f"float16[{side}, {side}]"
    model = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["": 18]> g ({square} a, {square} b) => ({square} y) {{ y = MatMul (a, b) }}'
    )
    numbers = np.random.default_rng(0).standard_normal((side, side), np.float32).astype(np.float16)
    product, _ = measure(model, {"a": numbers, "b": numbers}, {})
    return 4 * count / copy, 2.0 * side**3 / product


def measure(model: onnx.ModelProto, inputs: Mapping[str, np.ndarray], in_place: Mapping[str, str]) -> tuple[float, int]:
    """The median seconds of a run of `model` as a CUDA graph, and the bytes of its outputs.

    `in_place` are inputs and the outputs that share their memory.
    """
    there = {name: on_device(array) for name, array in inputs.items()}
    shared = {output: there[name] for name, output in in_place.items()}
    names = [output.name for output in model.graph.output]

    plain = session_of(model, graph=False)
    binding = bound(plain, there, shared)
    for name in names:
        if name not in shared:
            binding.bind_output(name, "cuda")
    plain.run_with_iobinding(binding)
    order = [*shared, *(name for name in names if name not in shared)]  # in which they were bound
    outputs = dict(zip(order, binding.get_outputs(), strict=True))

    session = session_of(model, graph=True)
    binding = bound(session, there, outputs)
    without_waiting = onnxruntime.RunOptions()
    without_waiting.add_run_config_entry("disable_synchronize_execution_providers", "1")
    # The default. Where it is missing, ONNX Runtime's Python catches an exception in each run, for 45 us.
    without_waiting.add_run_config_entry("gpu_graph_id", "0")
    for _ in range(3):
        session.run_with_iobinding(binding)
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        for _ in range(RUNS):
            session.run_with_iobinding(binding, without_waiting)
        binding.synchronize_outputs()
        times.append((time.perf_counter() - start) / RUNS)
    return statistics.median(times), sum(value.tensor_size_in_bytes() for value in outputs.values())


def session_of(model: onnx.ModelProto, *, graph: bool) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxfuse.session(model, [(CUDA, {"enable_cuda_graph": str(int(graph))})], options=options)


def bound(session: onnxruntime.InferenceSession, inputs: Mapping, outputs: Mapping) -> onnxruntime.IOBinding:
    binding = session.io_binding()
    for name, value in inputs.items():
        binding.bind_ortvalue_input(name, value)
    for name, value in outputs.items():
        binding.bind_ortvalue_output(name, value)
    return binding


def on_device(array: np.ndarray) -> onnxruntime.OrtValue:
    """A copy of `array`, on the first device."""
    if array.dtype != DTYPES["bfloat16"]:
        return onnxruntime.OrtValue.ortvalue_from_numpy(array, "cuda", 0)
    value = onnxruntime.OrtValue.ortvalue_from_shape_and_type(list(array.shape), ir.DataType.BFLOAT16.value, "cuda", 0)
    value.update_inplace(array.view(np.uint16))
    return value
