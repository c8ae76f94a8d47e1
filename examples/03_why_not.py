"""Ask why something was not fused: here the epsilon of a norm is an input of the model, so it is no constant."""

from pathlib import Path

import onnx_ir as ir

import onnxfuse

MODEL = Path(__file__).with_name("tiny_llama.onnx")


def with_epsilon_as_input():
    model = ir.load(MODEL)
    shifted = next(node for node in model.graph if node.op_type == "ReduceMean").outputs[0].uses()[0].node
    epsilon = ir.Value(name="epsilon", shape=ir.Shape([]), type=ir.TensorType(ir.DataType.FLOAT))
    model.graph.inputs.append(epsilon)
    shifted.replace_input_with(1, epsilon)
    return model


if __name__ == "__main__":
    for event in onnxfuse.explain(with_epsilon_as_input()).events:
        if event.to_dict()["outcome"] == "near miss" and event.fusion == "rms_norm":
            print(f"{event.fusion} at {event.node}: {event.matched} of {event.wanted} operators matched")
            print(f"  {event.where}  {event.source}")
            print(f"  {event.message}")
