"""Llama graphs with the sizes of Llama-2-7B and any number of layers, made of a real export.

PyTorch exports a Llama of a sixteenth of the width with two layers; the nodes of the second are repeated, and the
weights refer to an external file of the full size. That file is sparse: it takes no room on disk and reads as zeros.
"""

import math
import runpy
import warnings
from pathlib import Path

import onnx
from onnx import TensorProto

SMALL = {
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 2000,
}
WIDER = 16  # 7B over SMALL; a head has 128 features in both


def export_small(path: Path) -> None:
    """Export the narrow Llama by example 01."""
    warnings.filterwarnings("ignore")
    example = runpy.run_path(str(Path(__file__).parents[1] / "01_export_a_tiny_llama.py"))
    example["export"](example["random_llama"](**SMALL), path)


def synthetic(small: Path, layers: int, folder: Path) -> Path:
    """Write the model with `layers` layers (2 or more) to `folder`."""
    model = onnx.load(small)
    graph = model.graph
    _repeat_second_layer(graph, layers)
    for value in (*graph.input, *graph.output):
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if (value.name == "logits" and axis == 2) or (("key" in value.name or "value" in value.name) and axis == 1):
                dim.dim_value *= WIDER
    _move_outside(graph, folder / f"llama_7b_{layers}_layers.bin")
    path = folder / f"llama_7b_{layers}_layers.onnx"
    onnx.save(model, path)
    return path


def _repeat_second_layer(graph: onnx.GraphProto, layers: int) -> None:
    made = {output: node for node in graph.node for output in node.output}
    weights = {tensor.name: tensor for tensor in graph.initializer}
    second = [node for node in graph.node if "layers.1/" in node.name]
    inside = {output for node in second for output in node.output}
    leaving = {name for node in graph.node if "layers.1/" not in node.name for name in node.input if name in inside}

    def name_in(layer: int, name: str) -> str:
        """What `name`, as the nodes of the second layer use it, is called in another layer."""
        after = name.replace("layers.0/", "layers.1/")
        if name != after and after in leaving:  # what each layer hands to the next
            return after.replace("layers.1/", f"layers.{layer - 1}/")
        if name in weights:
            return f"{name}.{layer}"
        if name in inside or name not in made:
            return name.replace("layers.1/", f"layers.{layer}/").replace(".1.", f".{layer}.")
        return name

    copies = []
    for layer in range(2, layers):
        for node in second:
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            copy.name = name_in(layer, node.name)
            copy.input[:] = [name_in(layer, name) for name in node.input]
            copy.output[:] = [name_in(layer, name) for name in node.output]
            copies.append(copy)
            for name in {name for name in node.input if name in weights}:
                weight = graph.initializer.add()
                weight.CopyFrom(weights[name])
                weight.name = name_in(layer, name)
        for values in (graph.input, graph.output):
            for value in [value for value in values if ".1." in value.name]:
                values.add().CopyFrom(value)
                values[-1].name = name_in(layer, value.name)

    nodes = list(graph.node)
    end = max(index for index, node in enumerate(nodes) if "layers.1/" in node.name) + 1
    for node in nodes[end:]:
        node.input[:] = [n.replace("layers.1/", f"layers.{layers - 1}/") if n in leaving else n for n in node.input]
    del graph.node[:]
    graph.node.extend([*nodes[:end], *copies, *nodes[end:]])


def _move_outside(graph: onnx.GraphProto, path: Path) -> None:
    """Widen the weights and put them into a sparse file."""
    offset = 0
    for tensor in graph.initializer:
        sizes = [size * WIDER for size in tensor.dims]
        length = 4 * math.prod(sizes)
        tensor.CopyFrom(TensorProto(name=tensor.name, data_type=TensorProto.FLOAT, dims=sizes))
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", path.name), ("offset", offset), ("length", length)):
            tensor.external_data.add(key=key, value=str(value))
        offset += length
    with path.open("wb") as file:
        file.truncate(offset)
