"""Fuse a model from Python, read the report, run the result beside the original."""

import tempfile
from pathlib import Path

import numpy as np

import onnxfuse

MODEL = Path(__file__).with_name("tiny_llama.onnx")


def prompt(batch=2, tokens=4):
    """Inputs for a first step: nothing in the cache yet."""
    empty = np.zeros((batch, 2, 0, 8), np.float32)
    return {
        "input_ids": np.arange(batch * tokens).reshape(batch, tokens),
        "attention_mask": np.ones((batch, tokens), np.int64),
        "position_ids": np.tile(np.arange(tokens), (batch, 1)),
        **{f"past_key_values.{layer}.{part}": empty for layer in range(2) for part in ("key", "value")},
    }


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        fused = Path(folder) / "fused.onnx"
        result = onnxfuse.optimize(MODEL, output=fused)
        print(f"{result.report.nodes_before} -> {result.report.nodes_after} nodes: {result.report.fused}")

        expected = onnxfuse.session(MODEL, ops=[]).run(["logits"], prompt())[0]
        kernels = onnxfuse.session(fused).run(["logits"], prompt())[0]
        bodies = onnxfuse.session(fused, ops=[]).run(["logits"], prompt())[0]  # as if the library were not there
    print(f"largest difference with the library: {abs(kernels - expected).max():.1e}, without: ", end="")
    print(f"{abs(bodies - expected).max():.1e}")
