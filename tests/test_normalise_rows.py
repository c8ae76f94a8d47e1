"""A table made for every token and read in order, as ONNX Runtime's rotary embedding wants it, is the table."""

import pytest
from graphs import model_of, operators

from onnxfuse.normalise import normalise

BODY = """
    table = Reshape(x, rows)
    shape = Shape(x) B = Gather(shape, zero) S = Gather(shape, one) count = Mul(B, S)
    all = Range(START, COUNT, STEP)
    sizes = Shape<end=2>(x) places = Reshape(all, sizes)
    picked = Gather<axis=0>(TABLE, places) y = Relu(picked)
"""
CONSTANTS = "int64[2] rows = {-1, 8}, int64 zero = {0}, int64 one = {1}, int64 two = {2}"


def normalised(start="zero", count="count", step="one", table="table") -> list[str]:
    body = BODY.replace("START", start).replace("COUNT", count).replace("STEP", step).replace("TABLE", table)
    model = model_of(body, "float[B,S,8] x, float[M,8] other, int64 more", "float[B,S,8] y", CONSTANTS)
    normalise(model)
    return operators(model)


def test_all_rows_in_turn_are_the_table():
    assert normalised() == ["Relu"]


@pytest.mark.parametrize(
    "changed",
    [{"start": "one"}, {"step": "two"}, {"count": "more"}, {"table": "other"}],
    ids=("from the second row on", "every other row", "as many as a run says", "of another table"),
)
def test_other_rows_are_picked(changed: dict[str, str]):
    assert "Gather" in normalised(**changed)
