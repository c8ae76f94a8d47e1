"""Narrow weights: which are rounded and how, what stays, what the rounded model computes, and what its error is."""

from __future__ import annotations

import json
import math
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper
from small_models import embedding_model, weights

import onnxfuse
from onnxfuse import derived
from onnxfuse.cli import main
from onnxfuse.errors import Rejected, UsageError
from onnxfuse.narrow import Narrowed
from onnxfuse.normalise.constants import FOLD_LIMIT
from onnxfuse.verify import rounding
from onnxfuse.verify.interface import Point
from onnxfuse.verify.model import validate

TINY = Path(__file__).parent.parent / "examples" / "tiny_llama.onnx"
TINY_INT8 = {"int8": 11, "bfloat16": 4}  # those of keys and values have 16 columns
BF16 = ir.DataType.BFLOAT16
X = "float[B, S, 64] x"


def model_of(
    body: str, outputs: str, arrays: dict[str, np.ndarray], *, inputs: str = X, opset: int = 18
) -> onnx.ModelProto:
    """A model in ONNX's text form with these initializers."""
    text = f'<ir_version: 10, opset_import: ["": {opset}]> g ({inputs}) => ({outputs}) {{ {body} }}'
    model = onnx.parser.parse_model(text)
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
    return model


def rounded(array: np.ndarray) -> np.ndarray:
    return array.astype(ml_dtypes.bfloat16).astype(np.float64)


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def dtypes(model: ir.Model) -> dict[str, str]:
    return {name: value.const_value.dtype.name for name, value in model.graph.initializers.items()}


def in_int8(array: np.ndarray) -> np.ndarray:
    """Every column in blocks of 32 rows; of each the largest number becomes 127."""
    blocks = array.astype(np.float64).reshape(-1, 32, array.shape[1])
    scales = (np.abs(blocks).max(axis=1, keepdims=True).astype(np.float32) / np.float32(127)).astype(ml_dtypes.bfloat16)
    steps = blocks / np.where(scales == 0, 1, scales).astype(np.float64)
    return (np.clip(np.rint(steps), -127, 127) * scales).reshape(array.shape)


def optimized(model: onnx.ModelProto, weights: str = "bf16", **options) -> onnxfuse.api.Result:
    return onnxfuse.optimize(model, weights=weights, **options)


def check(model: ir.Model, feed: dict[str, np.ndarray], *wanted: np.ndarray, weights: str = "bfloat16") -> None:
    """With the kernels and as function bodies: sums of 64 products near 1, by matrices of dtype `weights`."""
    for ops in (None, []):
        for found, want in zip(onnxfuse.session(model, ops=ops).run(None, feed), wanted, strict=True):
            np.testing.assert_allclose(found, want, rtol=0, atol=tolerance_of(want, weights))


def tolerance_of(want: np.ndarray, weights: str) -> float:
    """Of sums of 64 products near 1. For many rows factors have 8 bits on some processors: activations, or int8's."""
    bits = 15 if want.size // want.shape[-1] <= {"bfloat16": 7, "int8": 32}[weights] else 9
    return 2.0 ** (1 - bits) * max(1, np.abs(want).max())


def activations(rows: int = 5, columns: int = 64) -> np.ndarray:
    return np.random.default_rng(3).standard_normal((2, rows, columns), dtype=np.float32)


@pytest.mark.parametrize("columns", [96, 32, 33, 7, 1])
@pytest.mark.parametrize("rows", [1, 20])
def test_a_product_by_a_constant_matrix_becomes_linear(columns: int, rows: int) -> None:
    w = weights(64, columns)
    model = optimized(model_of("y = MatMul (x, w)", f"float[B, S, {columns}] y", {"w": w})).model
    assert operators(model) == ["Linear"]
    ((name, value),) = model.graph.initializers.items()
    assert (name, value.const_value.dtype) == ("w/bfloat16", BF16)
    assert list(value.shape) == ([columns // 32, 64, 32] if columns % 32 == 0 else [64, columns])
    x = activations(rows)
    check(model, {"x": x}, x @ rounded(w))


@pytest.mark.parametrize("rows", [1, 5, 20])
def test_a_matrix_in_int8(rows: int) -> None:
    w = weights(64, 96)
    model = optimized(model_of("y = MatMul (x, w)", "float[B, S, 96] y", {"w": w}), "int8").model
    assert operators(model) == ["Linear"]
    assert dtypes(model) == {"w/int8": "INT8", "w/int8/scale": "BFLOAT16"}
    assert [list(value.shape) for value in model.graph.initializers.values()] == [[3, 16, 32, 4], [3, 2, 32]]
    x = activations(rows)
    check(model, {"x": x}, x @ in_int8(w), weights="int8")


@pytest.mark.parametrize(("depth", "columns"), [(64, 40), (40, 64), (33, 7)])
def test_a_matrix_that_has_no_blocks_of_32_is_bfloat16_instead(depth: int, columns: int) -> None:
    w = weights(depth, columns)
    inputs = f"float[B, S, {depth}] x"
    result = optimized(model_of("y = MatMul (x, w)", f"float[B, S, {columns}] y", {"w": w}, inputs=inputs), "int8")
    assert dtypes(result.model) == {"w/bfloat16": "BFLOAT16"}
    assert any("rounded: 1 matrix in bfloat16" in note for note in result.report.verification.notes)
    x = activations(columns=depth)
    check(result.model, {"x": x}, x @ rounded(w))


def test_zeros_large_and_tiny_numbers_in_int8() -> None:
    w = weights(64, 32)
    w[:32, 0] = 0
    w[:, 1] *= np.float32(1e38)
    w[:, 2] *= np.float32(1e-42)
    w[7, 3] = 1e6  # the others of its block become zeros
    model = optimized(model_of("y = MatMul (x, w)", "float[B, S, 32] y", {"w": w}), "int8", verify="none").model
    x = activations()
    found = onnxfuse.session(model).run(None, {"x": x})[0]
    want = x @ in_int8(w)
    scale = np.abs(want).max(axis=(0, 1))
    scale[2] = 1e-37  # beside which 1e-42 is nothing
    np.testing.assert_allclose(found / scale, want / scale, rtol=0, atol=2.0**-14)
    assert np.all(in_int8(w)[:32, 3][np.arange(32) != 7] == 0)


def test_products_that_are_no_projection_stay() -> None:
    arrays = {
        "flat": weights(5, 3),
        "w3": np.stack([weights(64, 8, 1)] * 2),
        "vector": weights(64, 1)[:, 0].copy(),
        "w": weights(64, 32),
    }
    body = "a = MatMul (flat, x3)  b = MatMul (x, w3)  c = MatMul (x, vector)  d = MatMul (x, x4)  e = MatMul (x, w)"
    inputs = "float[2, S, 64] x, float[3, 6] x3, float[64, 4] x4"
    outputs = "float[5, 6] a, float[2, S, 8] b, float[2, S] c, float[2, S, 4] d, float[2, S, 32] e"
    model = optimized(model_of(body, outputs, arrays, inputs=inputs)).model
    assert operators(model) == ["MatMul"] * 4 + ["Linear"]
    assert dtypes(model) == {"flat": "FLOAT", "w3": "FLOAT", "vector": "FLOAT", "w/bfloat16": "BFLOAT16"}
    x, rng = activations(), np.random.default_rng(5)
    feed = {"x": x, "x3": rng.standard_normal((3, 6), dtype=np.float32)}
    feed["x4"] = rng.standard_normal((64, 4), dtype=np.float32)
    wanted = [arrays["flat"] @ feed["x3"], x @ arrays["w3"], x @ arrays["vector"], x @ feed["x4"]]
    check(model, feed, *wanted, x @ rounded(arrays["w"]))


def test_without_a_projection_there_is_nothing_to_round() -> None:
    model = model_of("y = MatMul (flat, x)", "float[B, 5, 64] y", {"flat": weights(5, 7)}, inputs="float[B, 7, 64] x")
    with pytest.raises(UsageError, match="multiplies by no constant matrix of floats"):
        optimized(model)


@pytest.mark.parametrize("form", ["bf16", "int8"])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_tied_embedding_table_stays_float32(transposed: bool, form: str) -> None:
    # The transpose of so large a table is not computed while rewriting; plain, the table has to be square.
    table = weights(FOLD_LIMIT // 64 + 32, 64, 4) if transposed else weights(64, 64, 4)
    product = "t = Transpose <perm = [1, 0]> (w)  y = MatMul (h, t)" if transposed else "y = MatMul (h, w)"
    outputs = f"float[B, S, {len(table)}] y"
    model = optimized(
        model_of(f"h = Gather (w, ids)  {product}", outputs, {"w": table}, inputs="int64[B, S] ids"), form
    ).model
    assert operators(model) == ["Gather", "Linear"]
    narrow = {"bf16": {"w/bfloat16": "BFLOAT16"}, "int8": {"w/int8": "INT8", "w/int8/scale": "BFLOAT16"}}
    assert dtypes(model) == {"w": "FLOAT", **narrow[form]}
    ids = np.arange(12).reshape(2, 6) * 5
    matrix = {"bf16": rounded, "int8": in_int8}[form](table.T if transposed else table)
    check(model, {"ids": ids}, table[ids] @ matrix)


def test_a_matrix_of_several_products_is_stored_once() -> None:
    w = weights(64, 64)
    model = optimized(model_of("a = MatMul (x, w)  y = MatMul (a, w)", "float[B, S, 64] y", {"w": w})).model
    assert operators(model) == ["Linear", "Linear"]
    assert list(dtypes(model)) == ["w/bfloat16"]
    x = activations()
    check(model, {"x": x}, x @ rounded(w) @ rounded(w))


def test_names_that_are_taken_are_not_taken_again() -> None:
    arrays = {"w": weights(64, 32), "w/bfloat16": weights(64, 32, 1)}
    model = model_of("a = MatMul (x, w)  b = MatMul (x, v)", "float[B, S, 32] a, float[B, S, 32] b", {"w": arrays["w"]})
    model.graph.initializer.append(numpy_helper.from_array(arrays["w/bfloat16"], "w/bfloat16"))
    model.graph.node[1].input[1] = "w/bfloat16"
    found = optimized(model).model
    assert len(found.graph.initializers) == 2
    x = activations()
    check(found, {"x": x}, *(x @ rounded(array) for array in arrays.values()))


def test_a_matrix_that_an_input_may_replace_stays() -> None:
    arrays = {"w": weights(64, 32), "v": weights(64, 32, 1)}
    inputs = f"{X}, float[64, 32] w"
    model = model_of(
        "a = MatMul (x, w)  b = MatMul (x, v)", "float[B, S, 32] a, float[B, S, 32] b", arrays, inputs=inputs
    )
    found = optimized(model).model
    assert operators(found) == ["MatMul", "Linear"]
    assert dtypes(found) == {"w": "FLOAT", "v/bfloat16": "BFLOAT16"}


def test_a_matrix_that_is_an_output_is_also_kept() -> None:
    model = model_of("y = MatMul (x, w)", "float[B, S, 32] y, float[64, 32] w", {"w": weights(64, 32)})
    found = optimized(model).model
    assert dtypes(found) == {"w": "FLOAT", "w/bfloat16": "BFLOAT16"}
    x = activations()
    check(found, {"x": x}, x @ rounded(weights(64, 32)), weights(64, 32))


def test_a_matrix_in_a_branch(tmp_path: Path) -> None:
    w = weights(64, 32)
    branch = """y = If (flag) <
        then_branch = t () => (float[B, S, 32] a) { a = MatMul (x, w) },
        else_branch = e () => (float[B, S, 32] b) { m = MatMul (x, w)  b = Neg (m) }
    >"""
    found = optimized(model_of(branch, "float[B, S, 32] y", {"w": w}, inputs=f"{X}, bool flag")).model
    x = activations()
    for flag, sign in ((True, 1), (False, -1)):
        check(found, {"x": x, "flag": np.array(flag)}, sign * (x @ rounded(w)))


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 3.4e38, -3.4e38])
def test_a_matrix_with_values_that_bfloat16_lacks_stays(value: float) -> None:
    bad, good = weights(64, 32), weights(64, 32, 1)
    bad[63, 31] = value
    model = model_of(
        "a = MatMul (x, bad)  b = MatMul (x, good)",
        "float[B, S, 32] a, float[B, S, 32] b",
        {"bad": bad, "good": good},
    )
    result = optimized(model)
    assert dtypes(result.model) == {"bad": "FLOAT", "good/bfloat16": "BFLOAT16"}
    assert any(
        "as they were stay, for values that bfloat16 does not have: 'bad'" in n
        for n in result.report.verification.notes
    )


def test_the_largest_and_the_smallest_numbers_are_rounded() -> None:
    w = weights(64, 32)
    w[0, :4] = float(ml_dtypes.finfo(ml_dtypes.bfloat16).max), 1e-40, -0.0, 2.0**-126
    model = optimized(model_of("y = MatMul (x, w)", "float[B, S, 32] y", {"w": w})).model
    assert dtypes(model) == {"w/bfloat16": "BFLOAT16"}
    (value,) = model.graph.initializers.values()
    np.testing.assert_array_equal(value.const_value.numpy()[0].astype(np.float64), rounded(w))


MLP = """g = MatMul (x, gate)  s = Sigmoid (g)  a = Mul (g, s)  u = MatMul (x, up)  p = Mul (a, u)
    y = MatMul (p, down)"""


def mlp(inner: int = 96) -> dict[str, np.ndarray]:
    return {"gate": weights(64, inner, 0), "up": weights(64, inner, 1), "down": weights(inner, 64, 2)}


def mlp_of(x: np.ndarray, gate: np.ndarray, up: np.ndarray, down: np.ndarray) -> np.ndarray:
    g = x @ gate.astype(np.float64)
    return (g / (1 + np.exp(-g)) * (x @ up.astype(np.float64))) @ down.astype(np.float64)


@pytest.mark.parametrize("inner", [96, 90])
@pytest.mark.parametrize("rows", [1, 9])
def test_the_matrices_of_a_gated_mlp(inner: int, rows: int) -> None:
    arrays = mlp(inner)
    model = optimized(model_of(MLP, "float[B, S, 64] y", arrays)).model
    assert operators(model) == ["GatedMLP"]
    assert set(dtypes(model).values()) == {"BFLOAT16"}
    x = activations(rows)
    check(model, {"x": x}, mlp_of(x, *map(rounded, arrays.values())))


@pytest.mark.parametrize("rows", [1, 9, 40])
def test_a_gated_mlp_in_int8(rows: int) -> None:
    arrays = mlp()
    model = optimized(model_of(MLP, "float[B, S, 64] y", arrays), "int8").model
    assert operators(model) == ["GatedMLP"]
    assert sorted(dtypes(model).values()) == ["BFLOAT16"] * 3 + ["INT8"] * 3
    x = activations(rows)
    check(model, {"x": x}, mlp_of(x, *map(in_int8, arrays.values())), weights="int8")


def test_what_is_narrow_already_stays() -> None:
    model = model_of("y = MatMul (x, w)", "float[B, S, 32] y", {"w": weights(64, 32)})
    for first, second, dtype in (("bf16", "int8", "BFLOAT16"), ("int8", "bf16", "INT8")):
        once = optimized(model, first).model
        twice = optimized(ir.to_proto(once), second)
        assert dtypes(twice.model) == dtypes(once) and dtype in dtypes(once).values()
        assert any("rounded: nothing" in note for note in twice.report.verification.notes)


def test_a_model_that_was_packed_before_becomes_int8() -> None:
    arrays = mlp()
    fused = onnxfuse.optimize(model_of(MLP, "float[B, S, 64] y", arrays)).model
    model = optimized(ir.to_proto(fused), "int8").model
    assert sorted(dtypes(model).values()) == ["BFLOAT16"] * 3 + ["INT8"] * 3
    x = activations()
    check(model, {"x": x}, mlp_of(x, *map(in_int8, arrays.values())), weights="int8")


def test_gate_and_up_keep_one_dtype() -> None:
    arrays = mlp()
    arrays["up"][3, 3] = 3.4e38
    model = optimized(model_of(MLP, "float[B, S, 64] y", arrays)).model
    assert dtypes(model) == {"gate/packed": "FLOAT", "up/packed": "FLOAT", "down/bfloat16": "BFLOAT16"}


def test_a_model_that_was_fused_before() -> None:
    arrays = mlp()
    fused = onnxfuse.optimize(model_of(MLP, "float[B, S, 64] y", arrays)).model
    model = optimized(ir.to_proto(fused)).model
    assert set(dtypes(model).values()) == {"BFLOAT16"}
    x = activations()
    check(model, {"x": x}, mlp_of(x, *map(rounded, arrays.values())))


KINDS = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def mlp_of_16_bits(dtype: str, inner: int = 96) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """A gated MLP that computes in `dtype`, from float32 to float32, and its matrices."""
    arrays = {name: array.astype(KINDS[dtype]) for name, array in mlp(inner).items()}
    body = MLP.replace("x,", "h,").replace("y =", "z =")
    number = ir.DataType.from_numpy(np.dtype(KINDS[dtype])).value
    return model_of(f"h = Cast<to={number}> (x) {body} y = Cast<to=1> (z)", "float[B, S, 64] y", arrays), arrays


@pytest.mark.parametrize("rows", [1, 9, 40])
@pytest.mark.parametrize("dtype", KINDS)
def test_a_model_that_computes_in_16_bits_in_int8(dtype: str, rows: int) -> None:
    original, arrays = mlp_of_16_bits(dtype)
    model = optimized(original, "int8").model
    assert operators(model) == ["Cast", "GatedMLP", "Cast"]
    assert sorted(dtypes(model).values()) == ["BFLOAT16"] * 3 + ["INT8"] * 3
    x = activations(rows).astype(KINDS[dtype]).astype(np.float32)
    wanted = mlp_of(x, *map(in_int8, arrays.values()))
    # y is rounded to 16 bits, by half a unit of its last place; its sums are as near as those of float32.
    half = float(ml_dtypes.finfo(KINDS[dtype]).eps) / 2
    for ops in (None, []):
        (found,) = onnxfuse.session(model, ops=ops).run(None, {"x": x})
        np.testing.assert_allclose(found, wanted, rtol=half, atol=tolerance_of(wanted, "int8"))


@pytest.mark.parametrize("dtype", KINDS)
def test_matrices_of_16_bits_without_blocks_of_32_stay(dtype: str) -> None:
    result = optimized(mlp_of_16_bits(dtype, inner=90)[0], "int8")
    assert set(dtypes(result.model).values()) == {dtype.upper()}
    assert any("rounded: nothing" in note for note in result.report.verification.notes)


@pytest.mark.parametrize("dtype", KINDS)
def test_a_model_that_computes_in_16_bits_has_no_use_for_weights_of_16_bits(dtype: str) -> None:
    with pytest.raises(UsageError, match=f"expected a model that computes in float32; .* computes in {dtype}, "):
        optimized(mlp_of_16_bits(dtype)[0], "bf16", verify="none")


def test_the_error_is_measured_beside_that_of_float16() -> None:
    result = optimized(mlp_of_16_bits("float16")[0], "int8", verify="model")
    found = result.report.verification.rounding
    assert (found.reference, found.matrices) == ("float64", {"int8": 3})
    (entry,) = found.outputs
    # float16 rounds the result, and in the original each step, by 2^-11; the exact model has the numbers of float16
    assert 2.0**-13 < entry.unrounded < 2.0**-9 < entry.rounded_rms < entry.tolerance


def test_cuda_is_refused() -> None:
    with pytest.raises(UsageError, match=r"target is 'cuda': .* expected target 'cpu'"):
        optimized(embedding_model(), target="cuda")


@pytest.mark.parametrize("weights", ["bf16", "int8"])
@pytest.mark.parametrize("level", ["op", "block"])
def test_a_second_rewrite_changes_nothing(level: str, weights: str, tmp_path: Path) -> None:
    once, again, twice = (tmp_path / f"{name}.onnx" for name in ("once", "again", "twice"))
    for source, output in ((TINY, once), (TINY, again)):
        onnxfuse.optimize(source, output=output, weights=weights, level=level)
    assert once.read_bytes() == again.read_bytes()
    onnxfuse.optimize(once, output=twice, weights=weights, level=level)
    assert once.read_bytes() == twice.read_bytes()


@pytest.mark.parametrize("form", ["bf16", "int8"])
def test_matrices_in_a_file_are_rounded_slab_by_slab(form: str, tmp_path: Path, monkeypatch) -> None:
    arrays = {**mlp(), "head": weights(64, 40, 7)}
    model = model_of(MLP.replace("y =", "z =") + "y = MatMul (z, head)", "float[B, S, 40] y", arrays)
    whole, source, slabs = (tmp_path / f"{name}.onnx" for name in ("whole", "source", "slabs"))
    optimized(model, form, output=whole)
    onnx.save(model, source, save_as_external_data=True, location="source.data", size_threshold=0)
    monkeypatch.setattr(derived, "SLAB", 1 << 12)
    monkeypatch.setattr("onnxfuse.narrow.SLAB", 1 << 12)
    onnxfuse.optimize(source, output=slabs, weights=form)
    assert slabs.with_name("slabs.onnx.data").exists()
    found = {name: value.const_value.numpy() for name, value in ir.load(slabs).graph.initializers.items()}
    for name, value in ir.load(whole).graph.initializers.items():
        np.testing.assert_array_equal(found[name], value.const_value.numpy())


# float32 keeps 24 bits and bfloat16 weights 8, those of int8 7 of the largest of 32; two layers use up a few
@pytest.mark.parametrize(("form", "matrices", "largest"), [("bf16", {"bfloat16": 15}, 0.02), ("int8", TINY_INT8, 0.1)])
@pytest.mark.parametrize("options", [{}, {"level": "block"}, {"kv_cache": "shared"}], ids=str)
def test_the_error_is_measured_beside_that_of_float32(
    form: str, matrices: dict[str, int], largest: float, options: dict[str, str], tmp_path: Path
) -> None:
    result = onnxfuse.optimize(TINY, output=tmp_path / "out.onnx", weights=form, verify="model", **options)
    verification = result.report.verification
    found = verification.rounding
    assert verification.passed and all(check.max_rel < 1e-4 for check in verification.outputs)
    assert (found.reference, found.matrices) == ("float64", matrices)
    for entry in found.outputs:
        assert 0 < entry.unrounded < 1e-5 < 1e-4 < entry.rounded_rms < entry.tolerance < largest
        assert entry.unrounded_rms < entry.unrounded and entry.rounded_rms < entry.rounded
    data = json.loads(result.report.to_json())["verification"]["rounding"]
    assert data["outputs"][0]["name"] == "logits" and data["outputs"][0]["rounded"] == found.outputs[0].rounded


def test_the_error_of_a_model_in_memory_is_measured() -> None:
    model = ir.from_proto(model_of("y = MatMul (x, w)", "float[B, S, 32] y", {"w": weights(64, 32)}))
    found = onnxfuse.optimize(model, weights="bf16", verify="model").report.verification.rounding
    assert found.reference == "float64" and found.passed
    assert model.graph.inputs[0].dtype == ir.DataType.FLOAT


@pytest.mark.parametrize(("form", "matrices"), [("bf16", "15 matrices in bfloat16"), ("int8", "11 matrices in int8")])
@pytest.mark.parametrize("level", ["op", "block"])
def test_validate_says_what_tolerance_narrow_weights_need(form: str, matrices: str, level: str, tmp_path: Path) -> None:
    fused, points = tmp_path / "out.onnx", [Point(2, 5, 3)]
    onnxfuse.optimize(TINY, output=fused, weights=form, level=level)
    refused = validate(TINY, fused, points=points)
    (note,) = (note for note in refused.notes if matrices in note)
    tolerance = float(note.partition("up to ")[2].partition(":")[0])
    assert not refused.passed
    assert validate(TINY, fused, points=points, tolerance=tolerance).passed


def test_without_double_kernels_the_original_is_the_reference() -> None:
    body = "h = MatMul (x, w)  e = Erf (h)  y = MatMul (e, v)"  # ONNX Runtime has no Erf for double
    arrays = {"w": weights(64, 32), "v": weights(32, 64, 1)}
    result = optimized(model_of(body, "float[B, S, 64] y", arrays), verify="model")
    found = result.report.verification.rounding
    assert found.reference == "original"
    assert found.outputs[0].unrounded < 1e-5 < found.outputs[0].rounded


def test_a_model_too_large_for_float64_is_compared_with_the_original(monkeypatch) -> None:
    monkeypatch.setattr(rounding, "FLOAT64_LIMIT", 100)
    result = optimized(embedding_model(), verify="model")
    assert result.report.verification.rounding.reference == "original"


def test_an_error_beyond_rounding_is_refused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(Narrowed, "tolerance", 1e-6)
    out = tmp_path / "out.onnx"
    with pytest.raises(Rejected, match="with bf16 weights logits is farther off than their rounding explains") as e:
        optimized(embedding_model(), verify="model", output=out)
    assert not out.exists()
    assert e.value.report.verification.passed is False


def test_the_tolerance_is_that_of_roundings_behind_each_other() -> None:
    def tolerance(**matrices: int) -> float:
        return Narrowed(matrices, ()).tolerance

    assert tolerance(bfloat16=4) == 2 * tolerance(bfloat16=1)
    assert math.isclose(tolerance(bfloat16=3), 3 * 2.0**-8 * math.sqrt(3 / 7))
    assert math.isclose(tolerance(int8=3), 3 * 3 / 254)
    assert math.isclose(tolerance(int8=3, bfloat16=3), 3 * math.hypot(3 / 254, 2.0**-8 * math.sqrt(3 / 7)))


@pytest.mark.parametrize("count", [15, 225, 10_000])
def test_an_output_of_zeros_is_farther_off_than_any_number_of_matrices_explains(count: int) -> None:
    original = ir.from_proto(model_of("y = MatMul (x, w)", "float[B, S, 32] y", {"w": weights(64, 32)}))
    zeros = ir.from_proto(model_of("y = MatMul (x, w)", "float[B, S, 32] y", {"w": 0 * weights(64, 32)}))
    narrowed = Narrowed({"int8": count}, ())
    assert narrowed.largest < 1
    (check,) = rounding.measure(original, original, zeros, narrowed).outputs
    assert check.rounded == check.rounded_rms == 1 and not check.passed


def test_an_output_that_is_no_number_is_too_far_off() -> None:
    original = ir.from_proto(model_of("y = MatMul (x, w)", "float[B, S, 32] y", {"w": weights(64, 32)}))
    spoilt = weights(64, 32)
    spoilt[0, 0] = np.nan
    other = ir.from_proto(model_of("y = MatMul (x, w)", "float[B, S, 32] y", {"w": spoilt}))
    (check,) = rounding.measure(original, original, other, Narrowed({"int8": 5}, ())).outputs
    assert not check.passed and check.to_dict()["rounded_rms"] is None  # infinite, as no JSON number


def test_the_command_says_both_errors(capsys, tmp_path: Path) -> None:
    arguments = ["rewrite", TINY, "-o", tmp_path / "out.onnx", "--weights", "bf16", "--verify", "model"]
    assert main([str(argument) for argument in arguments]) == 0
    out = capsys.readouterr().out
    assert "error with 15 matrices in bfloat16, against float64:" in out
    assert "unrounded max" in out and "rounded max" in out and "ok" in out


def test_without_verification_of_the_model_the_error_is_said_to_be_unknown() -> None:
    notes = optimized(embedding_model()).report.verification.notes
    assert "rounded: 1 matrix in bfloat16; verify 'model' measures what that changes" in notes
