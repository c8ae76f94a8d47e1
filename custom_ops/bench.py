"""Times the operators on their benchmark cases: `python -m onnxfuse.custom_ops.bench [--op RMSNorm] [--cuda]`.

Every case is run with the kernel and as its function body in standard operators, in turns. The time is the least of
many runs of the whole session, so about 5 us of it are the runtime's. Traffic counts every input and output once;
where the arithmetic decides (`Case.flops`), that is given instead.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import onnxruntime

import onnxfuse
from onnxfuse.custom_ops import cuda_bench
from onnxfuse.custom_ops.case import DTYPES, Case, single_node_model
from onnxfuse.custom_ops.functions import attach, folders, part

SECONDS = 0.3  # a case


def memory_bandwidth(threads: int) -> float:
    """Bytes a second that `threads` threads read and write when they copy."""
    size = 1 << 28
    source, target = np.ones(size, np.uint8), np.zeros(size, np.uint8)

    def copy() -> None:
        parts = zip(np.array_split(target, threads), np.array_split(source, threads), strict=True)
        workers = [threading.Thread(target=np.copyto, args=part) for part in parts]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    return 2 * size / least_seconds([copy], SECONDS)[0]


def least_seconds(runs: list[Callable[[], object]], seconds: float) -> list[float]:
    """The least time of each run; they take turns, so that a disturbance hits them all."""
    best = [float("inf")] * len(runs)
    end = time.perf_counter() + seconds * len(runs)
    while time.perf_counter() < end:
        for i, run in enumerate(runs):
            start = time.perf_counter()
            run()
            best[i] = min(best[i], time.perf_counter() - start)
    return best


def runner(model: ir.Model, case: Case, options: onnxruntime.SessionOptions, ops: list[str] | None) -> Callable:
    """A run of `model` on inputs and outputs that stay where they are."""
    session = onnxfuse.session(model, options=options, ops=ops)
    binding = session.io_binding()
    for name, array in case.arrays().items():
        if array is None:
            continue
        dtype = ir.DataType.from_numpy(array.dtype)
        data = array.view(np.uint16) if array.dtype == DTYPES["bfloat16"] else array
        value = onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(np.ascontiguousarray(data), int(dtype))
        binding.bind_ortvalue_input(name, value)
    for output in session.get_outputs():
        binding.bind_output(output.name, "cpu")
    session.run_with_iobinding(binding)
    bound = binding.get_outputs()
    binding.clear_binding_outputs()
    for output, value in zip(session.get_outputs(), bound, strict=True):
        binding.bind_ortvalue_output(output.name, value)
    return lambda: session.run_with_iobinding(binding)


def traffic(case: Case, results: tuple[np.ndarray, ...]) -> int:
    """Bytes of all inputs and outputs."""
    if case.traffic:
        return case.traffic
    inputs = sum(array.nbytes for array in case.arrays().values() if array is not None)
    outputs = zip(results, case.made.values(), strict=True)
    return inputs + sum(result.size * DTYPES[dtype].itemsize for result, dtype in outputs)


def report(operator: str, threads: int) -> None:
    print(f"\n{operator:52} kernel us        rate    body us   ratio")
    for case in part(operator, "cases").cases():
        if not case.benchmark or case.device == "cuda":
            continue
        results = case.of_node(part(operator, "reference").reference(**case.arrays(), **case.attributes))
        runs = []
        for ops in (None, []):
            model = single_node_model(operator, case, 18, [result.shape for result in results])
            attach(model.graph[0], model)
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = threads
            runs.append(runner(model, case, options, ops))
        kernel, body = least_seconds(runs, SECONDS)
        if case.flops:
            rate = f"{case.flops / kernel / 1e9:7.1f} GFLOP/s"
        else:
            rate = f"{traffic(case, results) / kernel / 1e9:7.1f} GB/s"
        print(f"{case.name:52}{kernel * 1e6:10.1f}{rate:>12}{body * 1e6:11.1f}{body / kernel:8.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--op", choices=sorted(folders()), help="only this operator")
    parser.add_argument("--threads", type=int, default=2, help="threads of a session (default: %(default)s)")
    parser.add_argument("--cuda", action="store_true", help="the CUDA kernels")
    arguments = parser.parse_args()
    operators = [arguments.op] if arguments.op else sorted(folders())
    if arguments.cuda:
        cuda_bench.report(operators)
        return
    bandwidth = memory_bandwidth(arguments.threads)
    print(f"memory: {bandwidth / 1e9:.1f} GB/s (a copy, read and written, {arguments.threads} threads)")
    for operator in operators:
        report(operator, arguments.threads)


if __name__ == "__main__":
    main()
