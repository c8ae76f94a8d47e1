"""The operators of domain "onnxfuse", one folder each: kernels in C++, body in ONNX operators, reference in numpy."""
