"""onnxfuse: fuse exported Llama-family ONNX models and prove the result equal."""
