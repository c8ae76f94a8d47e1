"""Rows that ids select from a constant table, by an operator of its own at level block."""

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from graphs import model_of, operators

import onnxfuse
from onnxfuse.verify.interface import Interface

TABLE = np.array([[0, 1, 2, 3], [10, 11, 12, 13], [20, 21, 22, 23]], np.float32)
DTYPES = {"float": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def model(
    body: str = "y = Gather(table, ids)",
    inputs: str = "int64[B, S] ids",
    outputs: str = "float[B, S, 4] y",
    **constants: np.ndarray,
) -> ir.Model:
    """A model of constants, TABLE for one."""
    arrays = {"table": TABLE} | constants
    made = model_of(body, inputs, outputs, ", ".join(f"float[1] {name} = {{0}}" for name in arrays))
    for name, array in arrays.items():
        value = made.graph.initializers[name]
        value.const_value = ir.tensor(array, name=name)
        value.dtype, value.shape = value.const_value.dtype, value.const_value.shape
    return made


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


@pytest.mark.parametrize("index", ["int64", "int32"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_a_table_are_one_operator(dtype: str, index: str):
    body = "c = Gather(table, ids) y = Cast<to=1>(c)"
    original = model(body, f"{index}[B, S] ids", table=TABLE.astype(DTYPES[dtype]))
    fused = onnxfuse.optimize(original, level="block", verify="model")
    assert fused.report.verification.passed
    assert fused.report.fused == {"Embedding": 1}
    ids = np.array([[0, -1, 2], [-3, 1, -2]], index)
    want = np.array([[0, 20, 20], [0, 10, 10]], np.float32)[..., None] + np.arange(4, dtype=np.float32)
    for session in (onnxfuse.session(fused.model), onnxfuse.session(fused.model, ops=[])):
        np.testing.assert_array_equal(session.run(None, {"ids": ids})[0], want)


def test_at_level_op_the_runtime_selects_rows():
    assert operators(onnxfuse.optimize(model()).model) == ["Gather"]


@pytest.mark.parametrize(
    "changed",
    [
        {"body": "y = Gather<axis=1>(table, ids)", "outputs": "float[3, B, S] y"},
        {"body": "t = Relu(table) n = Cast<to=1>(ids) r = Mul(t, n) y = Gather(r, ids)", "inputs": "int64[3,4] ids"},
        {"table": TABLE.astype(np.int64), "outputs": "int64[B, S, 4] y"},
        {"table": TABLE.astype(np.float64), "outputs": "double[B, S, 4] y"},
        {"table": TABLE.reshape(3, 2, 2), "outputs": "float[B, S, 2, 2] y"},
        {"table": TABLE.reshape(12), "outputs": "float[B, S] y"},
    ],
    ids=("columns", "a table of this run", "integers", "double precision", "rank 3", "rank 1"),
)
def test_what_is_no_embedding_stays(changed: dict):
    assert "Gather" in operators(onnxfuse.optimize(model(**changed), level="block").model)


def test_a_table_that_a_product_reads_too_is_stored_once(tmp_path: Path):
    body = "x = Gather(table, ids) t = Transpose<perm=[1,0]>(table) h = Relu(x) y = MatMul(h, t)"
    original = model(body, outputs="float[B, S, 700] y", table=random(700, 48))
    fused = onnxfuse.optimize(original, tmp_path / "fused.onnx", level="block", target="cuda", verify="model")
    assert fused.report.verification.passed
    assert fused.report.fused["Embedding"] == 1
    ids = np.array([[0, -1, 699]])
    want, got = (onnxfuse.session(m).run(None, {"ids": ids})[0] for m in (original, tmp_path / "fused.onnx"))
    np.testing.assert_allclose(got, want, rtol=0, atol=48 * 16 * np.finfo(np.float32).eps)  # 48 terms, each below 16


def test_a_table_with_more_rows_than_are_drawn_of_other_weights_is_verified():
    """Weights of many megabytes are drawn smaller; tokens are drawn from all rows."""
    original = model(outputs="float[B, S, 4096] y", table=random(1024, 4096))
    fused = onnxfuse.optimize(original, level="block", verify="match")
    assert fused.report.refused == []
    assert operators(fused.model) == ["Embedding"]


def test_tokens_of_a_fused_model_are_rows_of_its_table():
    original = model("y = Gather(table, input_ids)", "int64[B, S] input_ids")
    fused = onnxfuse.optimize(original, level="block").model
    (entry,) = Interface.of(fused).inputs
    assert (entry.role, entry.limit) == ("tokens", 3)


@pytest.mark.parametrize("weights", ["bf16", "int8"])
def test_a_table_keeps_its_dtype_where_weights_become_narrow(weights: str):
    body = "x = Gather(table, ids) y = MatMul(x, w)"
    original = model(body, outputs="float[B, S, 32] y", table=random(9, 32), w=random(32, 32))
    fused = onnxfuse.optimize(original, level="block", weights=weights).model
    assert operators(fused) == ["Embedding", "Linear"]
    assert fused.graph[0].inputs[1].dtype == ir.DataType.FLOAT
    assert fused.graph[1].inputs[3].dtype != ir.DataType.FLOAT
