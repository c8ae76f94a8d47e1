"""onnxfuse: fuse exported Llama-family ONNX models and prove the result equal."""

from onnxfuse.api import Result, explain, optimize
from onnxfuse.errors import Rejected, UsageError
from onnxfuse.runtime import library_path, session, session_options

__all__ = [
    "Rejected",
    "Result",
    "UsageError",
    "explain",
    "library_path",
    "optimize",
    "session",
    "session_options",
]
