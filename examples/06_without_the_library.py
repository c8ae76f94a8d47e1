"""A fused model runs anywhere: every fused operator carries its definition in standard ONNX operators."""

from pathlib import Path

import onnx
import onnx_ir
import onnxruntime

import onnxfuse

fused = onnx_ir.to_proto(onnxfuse.optimize(Path(__file__).with_name("tiny_llama.onnx")).model)
onnx.checker.check_model(fused, full_check=True)
for function in fused.functions:
    print(f"{function.domain}.{function.name}: {len(function.node)} standard nodes")

session = onnxruntime.InferenceSession(fused.SerializeToString())  # plain ONNX Runtime, nothing registered
print(f"ONNX Runtime loads it without onnxfuse; its first output is {session.get_outputs()[0].name}")
