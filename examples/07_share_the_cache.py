"""Decode in place: past and present are one buffer with room for all tokens, so that no step copies the cache."""

import tempfile
from pathlib import Path

import numpy as np
import onnxruntime

import onnxfuse

MODEL = Path(__file__).with_name("tiny_llama.onnx")
CACHE = [f"{layer}.{part}" for layer in range(2) for part in ("key", "value")]
ROOM = 64  # tokens


def generate(session, tokens, steps):
    """Greedy decoding: the prompt first, then one token a step."""
    buffers = {name: onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros((1, 2, ROOM, 8), np.float32)) for name in CACHE}
    binding = session.io_binding()
    for name, buffer in buffers.items():
        binding.bind_ortvalue_input(f"past_key_values.{name}", buffer)
        binding.bind_ortvalue_output(f"present.{name}", buffer)
    chosen, new = list(tokens), list(tokens)
    for _ in range(steps):
        binding.bind_cpu_input("input_ids", np.array([new]))
        binding.bind_cpu_input("attention_mask", np.ones((1, len(chosen)), np.int64))  # tells the length
        binding.bind_cpu_input("position_ids", np.arange(len(chosen) - len(new), len(chosen))[None])
        binding.bind_output("logits")
        session.run_with_iobinding(binding)
        new = [int(binding.get_outputs()[-1].numpy()[0, -1].argmax())]
        chosen += new
    return chosen


with tempfile.TemporaryDirectory() as folder:
    fused = Path(folder, "fused.onnx")
    onnxfuse.optimize(MODEL, fused, kv_cache="shared", verify="model")
    print(generate(onnxfuse.session(fused), [1, 2, 3], steps=20))
