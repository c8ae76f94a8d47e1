"""onnxfuse: fuse exported Llama-family ONNX models and prove the result equal."""

from onnxfuse.runtime import library_path, session, session_options

__all__ = ["library_path", "session", "session_options"]
