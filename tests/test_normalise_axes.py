"""An axis of size one that is inserted, moved and dropped again leaves only the move of the others."""

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from graphs import model_of, operators

from onnxfuse.normalise import normalise

BODY = "u = Unsqueeze(x, at) t = Transpose<perm=[PERM]>(u) y = Squeeze(t, dropped)"


def after(perm: str, at: str, dropped: str, output: str, inputs: str = "float[2,3,4] x") -> list[str]:
    """The operators after normalising, which must not change the result."""
    axes = ", ".join(f"int64[{len(v.split(','))}] {name} = {{{v}}}" for name, v in (("at", at), ("dropped", dropped)))
    model = model_of(BODY.replace("PERM", perm), inputs, output, axes)
    feeds = {"x": np.arange(24, dtype=np.float32).reshape([int(size) for size in model.graph.inputs[0].shape])}

    def result() -> np.ndarray:
        return onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString()).run(None, feeds)[0]

    want = result()
    normalise(model)
    np.testing.assert_array_equal(result(), want)
    return operators(model)


@pytest.mark.parametrize(
    ("perm", "at", "dropped"),
    [("1,0,3,2", "0", "1"), ("0,3,2,1", "1", "3"), ("2,1,0,4,3", "0,3", "2,4")],
    ids=("in front", "in the middle", "two"),
)
def test_the_others_are_transposed(perm, at, dropped):
    output = {"1,0,3,2": "float[2,4,3] y", "0,3,2,1": "float[2,4,3] y", "2,1,0,4,3": "float[3,2,4] y"}[perm]
    assert after(perm, at, dropped, output) == ["Transpose"]


def test_another_axis_of_one_may_be_dropped():
    assert "Transpose" in after("1,0,3,2", "0", "3", "float[1,1,24] y", "float[1,1,24] x")
