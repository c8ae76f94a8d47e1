"""Whether this machine can run the tests marked `cuda`."""

from __future__ import annotations

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
