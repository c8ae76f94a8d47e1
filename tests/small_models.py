"""Small models for tests, built in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

HIDDEN = 8


def weights(rows: int, columns: int, seed: int = 0, dtype: str = "float32") -> np.ndarray:
    """[rows, columns] normal values scaled so that a product keeps its size."""
    values = np.random.default_rng(seed).standard_normal((rows, columns)) / np.sqrt(rows)
    return values.astype(dtype)


def embedding_model(*, epsilon: float = 1e-5, rows: int = 16, scale: float = 1.0) -> onnx.ModelProto:
    """Token embedding, RMSNorm in primitive operators, projection: input_ids [B, S] -> logits [B, S, rows]."""
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["x"], name="embed"),
        helper.make_node("Mul", ["x", "x"], ["square"], name="square"),
        helper.make_node("ReduceMean", ["square"], ["mean"], name="mean", axes=[-1]),
        helper.make_node("Add", ["mean", "epsilon"], ["shifted"], name="shift"),
        helper.make_node("Sqrt", ["shifted"], ["root"], name="root"),
        helper.make_node("Div", ["x", "root"], ["normed"], name="divide"),
        helper.make_node("Mul", ["normed", "gain"], ["scaled"], name="gain_by"),
        helper.make_node("MatMul", ["scaled", "head"], ["logits"], name="project"),
    ]
    initializers = {
        "table": weights(rows, HIDDEN, 1),
        "epsilon": np.array(epsilon, np.float32),
        "gain": np.linspace(0.5, 1.5, HIDDEN, dtype=np.float32),
        "head": weights(HIDDEN, rows, 2) * np.float32(scale),
    }
    graph = helper.make_graph(
        nodes,
        "embedding_model",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "sequence", rows])],
        [numpy_helper.from_array(array, name) for name, array in initializers.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def padded_model(*, leak: float = 0.0) -> onnx.ModelProto:
    """Mean of the visible values at each token: x, attention_mask -> y; a padding token's own y is undefined.

    y = x + sum(x * mask) / sum(mask) + leak * (1 - mask): with `leak` the model differs on padding only.
    """
    nodes = [
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["column"]),
        helper.make_node("Mul", ["inputs_embeds", "column"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "tokens"], ["total"], keepdims=1),
        helper.make_node("ReduceSum", ["column", "tokens"], ["count"], keepdims=1),
        helper.make_node("Div", ["total", "count"], ["mean"]),
        helper.make_node("Sub", ["one", "column"], ["hidden"]),
        helper.make_node("Mul", ["hidden", "leak"], ["leaked"]),
        helper.make_node("Add", ["inputs_embeds", "mean"], ["centred"]),
        helper.make_node("Add", ["centred", "leaked"], ["y"]),
    ]
    initializers = {
        "last": np.array([-1], np.int64),
        "tokens": np.array([1], np.int64),
        "one": np.array(1, np.float32),
        "leak": np.array(leak, np.float32),
    }
    graph = helper.make_graph(
        nodes,
        "padded_model",
        [
            helper.make_tensor_value_info("inputs_embeds", TensorProto.FLOAT, ["batch", "sequence", HIDDEN]),
            helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["batch", "sequence"]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "sequence", HIDDEN])],
        [numpy_helper.from_array(array, name) for name, array in initializers.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def written(model: onnx.ModelProto, folder: Path, name: str = "model.onnx") -> Path:
    """`model` in a file of `folder`."""
    path = folder / name
    onnx.save(model, path)
    return path


def written_outside(model: onnx.ModelProto, folder: Path, name: str = "model.onnx", data: str = "weights.bin") -> Path:
    """`model` in a file of `folder`, every weight in the external data file `data`."""
    path = folder / name
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    onnx.save(copy, path, save_as_external_data=True, location=data, size_threshold=0)
    return path
