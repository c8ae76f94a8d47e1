"""onnxfuse: fuse exported Llama-family ONNX models and prove the result equal."""

from importlib.metadata import version
from pkgutil import extend_path

# Python started in a checkout finds this folder first; operators and patterns are where the package is installed.
__path__ = extend_path(__path__, __name__)
__version__ = version("onnxfuse")

from onnxfuse.api import Result, explain, optimize
from onnxfuse.errors import Rejected, UsageError
from onnxfuse.runtime import library_path, session, session_options

__all__ = [
    "Rejected",
    "Result",
    "UsageError",
    "__version__",
    "explain",
    "library_path",
    "optimize",
    "session",
    "session_options",
]
