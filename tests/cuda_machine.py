"""Whether this machine can run the tests marked `cuda`."""

from __future__ import annotations

import ctypes
import functools

import onnx
import onnxruntime

from onnxfuse.runtime import kernels

CUDA = "CUDAExecutionProvider"


@functools.cache
def lacks() -> str:
    """What is missing for CUDA sessions with this library's kernels; empty if nothing is."""
    if CUDA not in onnxruntime.get_available_providers():
        return "this ONNX Runtime has no CUDA execution provider"
    if CUDA not in kernels():
        return "the library was built without nvcc"
    onnxruntime.preload_dlls()
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 18]> g (float[1] x) => (float[1] y) {y = Neg (x)}'
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=[CUDA])
    return "" if CUDA in session.get_providers() else "the CUDA execution provider does not start on this machine"


@functools.cache
def devices() -> int:
    """How many GPUs the driver has; none without a driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int()
    return count.value if driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 else 0
