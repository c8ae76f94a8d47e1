"""Opening ONNX Runtime sessions for proof: without optimisations, with or without the operator library."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir

from onnxfuse import model_io
from onnxfuse.errors import UsageError

PROVIDERS = {"cpu": ["CPUExecutionProvider"], "cuda": ["CUDAExecutionProvider", "CPUExecutionProvider"]}
RANDOM_SEED = 20  # of operators such as Dropout in training mode, so that two sessions draw the same
IN_MESSAGE = 1 << 16  # bytes; larger weights of a model in memory are handed to the session without a copy


def onnxruntime():
    """The onnxruntime module, or a UsageError that says which extra brings it."""
    try:
        import onnxruntime
    except ImportError:
        raise UsageError(
            "ONNX Runtime is not installed: pip install 'onnxfuse[cpu]' (or 'onnxfuse[gpu]' for CUDA)"
        ) from None
    return onnxruntime


class Session:
    """An ONNX Runtime session for a model on disk or in memory.

    Parameters
    ----------
    model : path or onnx_ir.Model
        Weights of a model in memory are given to the session as they lie, memory-mapped or not.
    optimised : bool
        All of ONNX Runtime's graph optimisations, or none (the reference).
    library : path, optional
        The operator library to register; without it fused nodes run as their function bodies.
    provider : "cpu" | "cuda"
    threads : int
        Threads of the session; 0 leaves the choice to ONNX Runtime.

    Raises
    ------
    UsageError
        ONNX Runtime or the provider is missing, or ONNX Runtime refuses the model.
    """

    def __init__(
        self,
        model: str | os.PathLike | ir.Model,
        *,
        optimised: bool = False,
        library: Path | None = None,
        provider: str = "cpu",
        threads: int = 0,
    ) -> None:
        ort = onnxruntime()
        providers = PROVIDERS[provider]
        if providers[0] not in ort.get_available_providers():
            offered = ", ".join(ort.get_available_providers())
            raise UsageError(f"this ONNX Runtime has no {providers[0]}: it offers {offered}")
        if provider == "cuda" and not optimised:  # a proof that float32 products are equal needs all their bits
            providers = [(providers[0], {"use_tf32": "0"}), *providers[1:]]
        options = ort.SessionOptions()
        levels = ort.GraphOptimizationLevel
        options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimised else levels.ORT_DISABLE_ALL
        options.log_severity_level = 4
        options.intra_op_num_threads = threads
        # waiting threads sleep: a session for proof runs a few times, and spinning would cost more than its work
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if library is not None:
            options.register_custom_ops_library(str(library))
        ort.set_seed(RANDOM_SEED)
        self._weights: list[np.ndarray] = []  # ONNX Runtime reads them in place for as long as the session lives
        source = self._message(model, options) if isinstance(model, ir.Model) else os.fspath(model)
        try:
            self.session = ort.InferenceSession(source, options, providers=providers)
        except Exception as error:  # ONNX Runtime raises a dozen unrelated types
            what = "the model" if isinstance(model, ir.Model) else os.fspath(model)
            raise UsageError(f"ONNX Runtime cannot load {what}: {first_line(error)}") from error
        self.input_names = [entry.name for entry in self.session.get_inputs()]
        self.outputs = [entry.name for entry in self.session.get_outputs()]

    def run(self, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """All outputs for `feed` by name, bfloat16 included; entries that the model does not take are left out."""
        values = {name: ort_value(array) for name, array in feed.items() if name in self.input_names}
        results = self.session.run_with_ort_values(self.outputs, values)
        return {name: _array(result) for name, result in zip(self.outputs, results, strict=True)}

    def _message(self, model: ir.Model, options) -> bytes:
        """`model` serialised with its large weights left out and given to `options` instead."""
        message, left_out = model_io.outline(model, IN_MESSAGE)
        if left_out:
            self._weights = [np.ascontiguousarray(value.const_value.numpy()) for value in left_out]
            given = [ort_value(array) for array in self._weights]
            options.add_external_initializers([value.name for value in left_out], given)
        return message.SerializeToString()


def first_line(error: BaseException) -> str:
    """The message of an ONNX Runtime error without its code and its stack."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return text.split(" : ", 3)[-1] if text.startswith("[ONNXRuntimeError]") else text


def ort_value(array: np.ndarray):
    """`array` as an OrtValue that shares its memory."""
    ort = onnxruntime()
    if array.dtype != ml_dtypes.bfloat16:
        return ort.OrtValue.ortvalue_from_numpy(array)
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(np.uint16), ir.DataType.BFLOAT16.value)


def _array(value) -> np.ndarray:
    if value.data_type() != "tensor(bfloat16)":
        return value.numpy()
    shape = tuple(value.shape())  # ONNX Runtime has no numpy type for it: copy the raw bits
    size = int(np.prod(shape))
    if not size:
        return np.empty(shape, ml_dtypes.bfloat16)
    bits = np.frombuffer((ctypes.c_uint16 * size).from_address(value.data_ptr()), np.uint16).copy()
    return bits.view(ml_dtypes.bfloat16).reshape(shape)
