"""Generate tokens with the KV cache: the fused model has the interface of the original."""

import tempfile
from pathlib import Path

import numpy as np

import onnxfuse

MODEL = Path(__file__).with_name("tiny_llama.onnx")
CACHE = [f"{layer}.{part}" for layer in range(2) for part in ("key", "value")]


def generate(session, tokens, steps):
    """Greedy decoding: the prompt first, then one token a step."""
    past = {f"past_key_values.{name}": np.zeros((1, 2, 0, 8), np.float32) for name in CACHE}
    outputs = ["logits", *(f"present.{name}" for name in CACHE)]
    chosen, new = list(tokens), list(tokens)
    for _ in range(steps):
        feed = {
            "input_ids": np.array([new]),
            "attention_mask": np.ones((1, len(chosen)), np.int64),
            "position_ids": np.arange(len(chosen) - len(new), len(chosen))[None],
        }
        logits, *present = session.run(outputs, feed | past)
        past = dict(zip(past, present, strict=True))
        new = [int(logits[0, -1].argmax())]
        chosen += new
    return chosen


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        fused = Path(folder) / "fused.onnx"
        onnxfuse.optimize(MODEL, output=fused)
        original = generate(onnxfuse.session(MODEL, ops=[]), [1, 2, 3], 20)
        print(generate(onnxfuse.session(fused), [1, 2, 3], 20))
        print(original)
