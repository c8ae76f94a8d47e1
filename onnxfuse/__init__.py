"""onnxfuse: fuse exported Llama-family ONNX models and prove the result equal."""

from pkgutil import extend_path

# Python started in a checkout finds this folder first; operators and patterns are where the package is installed.
__path__ = extend_path(__path__, __name__)

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
